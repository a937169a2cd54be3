"""Versions, and the folder of compiled programs."""

import jax
import pytest

from rope_jax.runs.software import compilation_cache, versions


@pytest.mark.parametrize(
    ("where", "environment", "expected"),
    [("", "", "RUN/compiled"), ("/cache", "", "/cache"), ("off", "", ""), ("", "/theirs", "/theirs")],
)
def test_compilation_cache(monkeypatch, tmp_path, where, environment, expected):
    """In the run's folder or where it is asked for, unless the environment names one."""
    set_to = {"jax_compilation_cache_dir": environment}
    monkeypatch.setattr(jax.config, "read", set_to.get)
    monkeypatch.setattr(jax.config, "update", set_to.__setitem__)
    compilation_cache(tmp_path, where)
    assert set_to["jax_compilation_cache_dir"] == expected.replace("RUN", str(tmp_path))


def test_versions_name_software_and_devices():
    assert versions()["jax"] == jax.__version__
    assert versions()["devices"].startswith(f"{jax.device_count()} x ")
