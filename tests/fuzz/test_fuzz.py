"""Malformed files and values end in a message that names them. CONTRIBUTING.md says how to try more of them."""

import pytest

from rope_jax.errors import InputError
from tests.fuzz.inputs.values import PATHS
from tests.fuzz.run import findings


def test_names_longer_than_a_file_system_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for read, pattern in PATHS.values():
        with pytest.raises(InputError):
            read(pattern.format("x" * 300))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_malformed_inputs_are_refused_by_name():
    counts, found = findings(0, range(120))
    assert sum(counts.values()) == 120 and not found, "\n".join(found)
