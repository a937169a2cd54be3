"""Digests of vectors and weights: what changes them, and what does not."""

import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from rope_jax.evaluation.identity import vector_digest, weights_digest
from rope_jax.rope.embedding import ScaleVector


def test_a_vector_is_its_base_factors_and_attention_factor():
    rows = [
        (1e4, np.ones(8), 1.0),
        (5e5, np.ones(8), 1.0),
        (1e4, np.full(8, 1.0 + 1e-6), 1.0),
        (1e4, np.ones((2, 8)), 1.0),
        (1e4, np.ones(8), 1.1),
    ]
    digests = [vector_digest(ScaleVector.create(factors, attention), base) for base, factors, attention in rows]
    assert len(set(digests)) == len(rows)
    assert vector_digest(ScaleVector.create([1.0] * 8), 1e4) == digests[0]


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    tensors = {"a": np.arange(40_000, dtype=np.float32), "b": np.ones(8, np.float32), "empty": np.ones((0, 2))}
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_weights_that_are_written_in_place_differ(model, tmp_path):
    """Of one size and one time: every weight of a large tensor moves, or one of a small one."""
    before = weights_digest(model)
    assert weights_digest(shutil.copytree(model, tmp_path / "copy")) == before
    path = model / "model.safetensors"
    whole, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    start = 8 + int.from_bytes(whole[:8], "little")
    data = np.frombuffer(whole[start:], np.float32)
    moved, small = data.copy(), data.copy()
    moved[:40_000] += 1.0
    small[40_003] = 2.0
    digests = {before}
    for values in (moved, small):
        path.write_bytes(whole[:start] + values.tobytes())
        os.utime(path, ns=times)
        digests.add(weights_digest(model))
    path.write_bytes(whole)
    (model / "config.json").write_text("[]")
    digests.add(weights_digest(model))
    assert len(digests) == 4
