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

    class Config:
        jax_compilation_cache_dir = environment

        def update(self, name, value):
            setattr(self, name, value)

    config = Config()
    monkeypatch.setattr("jax.config", config)
    compilation_cache(tmp_path, where)
    assert config.jax_compilation_cache_dir == expected.replace("RUN", str(tmp_path))


def test_versions_name_software_and_devices():
    assert versions()["jax"] == jax.__version__
    assert versions()["devices"].startswith(f"{jax.device_count()} x ")
