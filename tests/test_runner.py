"""What the test runner is asked to do: which skips CI allows, and which tests share a process."""

import tomllib

import pytest

from tests import conftest

TEST = """
import pytest

def test_that_runs():
    pass

def test_that_is_skipped():
    pytest.skip({reason!r})
"""


@pytest.mark.parametrize(
    ("reason", "shared", "failed"),
    [
        ("not today", False, True),
        (conftest.MISSING_DATA, False, False),
        (conftest.MISSING_DATA, True, True),
        (conftest.SKIPS[0], True, False),
    ],
)
@pytest.mark.parametrize("ci", ["", "true"])
def test_a_skip_that_is_not_needed_fails_in_ci(pytester, monkeypatch, tmp_path, reason, shared, failed, ci):
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(conftest, "SHARED", tmp_path if shared else tmp_path / "nowhere")
    pytester.makeconftest("from tests.conftest import pytest_sessionfinish")
    pytester.makepyfile(TEST.format(reason=reason))
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, skipped=1)
    assert result.ret == (pytest.ExitCode.TESTS_FAILED if failed and ci else pytest.ExitCode.OK)
    assert ("test_that_is_skipped may not be skipped" in result.stdout.str()) == bool(failed and ci)


def test_a_file_is_run_by_one_worker(pytester):
    """Fixtures of a module are built once. pytest may ignore an option of pytest-xdist without a word."""
    project = tomllib.loads((conftest.REPOSITORY / "pyproject.toml").read_text())
    options = project["tool"]["pytest"]["ini_options"]["addopts"]
    pytester.makeini(f"[pytest]\naddopts = {options}\nmarkers =\n    slow\n    engines\n")
    test = (
        "import os, pytest\n@pytest.mark.parametrize('i', range(4))\ndef test(i): print(f'{__name__}@{os.getpid()};')"
    )
    pytester.makepyfile(test_a=test, test_b=test)
    result = pytester.runpytest_subprocess("-n", "2", "-rP", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=8)
    places = {line.strip() for line in result.outlines if line.startswith("test_") and line.endswith(";")}
    assert sorted(place.split("@")[0] for place in places) == ["test_a", "test_b"]
