"""Where compiled programs are kept."""

import pytest

from experiments import workdir


@pytest.mark.parametrize(
    ("field", "environment", "expected"),
    [("", None, "RUN/compiled"), ("/cache", None, "/cache"), ("off", None, None), ("", "/theirs", None)],
)
def test_compilation_cache(monkeypatch, tmp_path, field, environment, expected):
    """In the run's folder, or where it is asked for; the environment's word stands."""
    updates = []

    class Config:
        jax_compilation_cache_dir = environment

        def update(self, name, value):
            updates.append((name, value))

    monkeypatch.setattr("jax.config", Config())
    workdir.compilation_cache(tmp_path, field)
    wanted = expected and expected.replace("RUN", str(tmp_path))
    assert updates == ([("jax_compilation_cache_dir", wanted)] if wanted else [])
