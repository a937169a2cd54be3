"""Tensors larger than the pieces they are written in, read back by the reference implementation."""

import hashlib
import resource

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rope_jax.errors import InputError
from rope_jax.interop.new_tensor_files import PIECE_BYTES, PIECES, NewTensor, copy_tensors, write_tensors

FLOAT = np.dtype(np.float32)
# Rows of the second are longer than a piece; the third's are columns in memory; the last fit into one piece.
SHAPES = {"many rows": (5000, 600), "long rows": (2, PIECE_BYTES // 4 + 7), "turned": (700, 3, 1024), "empty": (0, 3)}


def random_tensors(dtype=FLOAT):
    random = np.random.default_rng(0)
    tensors = {name: random.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}
    tensors["turned"] = random.normal(size=SHAPES["turned"][::-1]).astype(dtype).T
    return tensors | {"number": np.asarray(3, dtype)}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_tensors_of_many_pieces(tmp_path, dtype):
    values, file, counts = random_tensors(), tmp_path / "file", []
    tensors = [NewTensor(name, np.dtype(dtype), value.shape) for name, value in values.items()]
    digest = write_tensors(file, tensors, values.values(), counts.append)
    found = load_file(file)
    for name, value in values.items():
        np.testing.assert_array_equal(found[name], value.astype(dtype), strict=True)
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert sum(counts) == sum(tensor.bytes for tensor in tensors)


def test_tensors_are_copied(tmp_path):
    values = {name: np.ascontiguousarray(value) for name, value in random_tensors().items()}
    source, file, counts = tmp_path / "source", tmp_path / "file", []
    save_file(values, source)
    digest = copy_tensors(source, file, counts.append)
    for name, value in load_file(file).items():
        np.testing.assert_array_equal(value, values[name], strict=True)
    assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert sum(counts) == sum(value.nbytes for value in values.values())


def test_a_value_that_does_not_fit_is_found_in_the_last_piece(tmp_path):
    value = np.ones((5000, 600), np.float32)
    value[-1, -1] = 1e6
    with pytest.raises(InputError, match="x has values beyond the range of float16"):
        write_tensors(tmp_path / "file", [NewTensor("x", np.dtype(np.float16), value.shape)], [value], lambda _: None)


@pytest.fixture
def small_files():
    """Files cannot grow beyond 1 KB, and writing more fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("pieces", [1, 2 * PIECES])
def test_a_write_that_fails_in_its_thread_is_noticed(tmp_path, small_files, pieces):
    value = np.zeros(pieces * PIECE_BYTES // 4, np.float32)
    with pytest.raises(OSError, match="File too large"):
        write_tensors(tmp_path / "file", [NewTensor("x", FLOAT, value.shape)], [value], lambda _: None)
