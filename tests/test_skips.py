"""In CI a test may be skipped only where the machine lacks what it needs."""

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
