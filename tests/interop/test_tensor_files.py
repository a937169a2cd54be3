"""Tensors that are read some rows at a time."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from rope_jax.interop import tensor_files
from rope_jax.interop.huggingface import read_model
from rope_jax.interop.tensor_files import read_header
from tests.interop.references import write_random_llama


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("stored") / "file.safetensors"
    # Another tensor lies before it.
    save_file({"a": np.zeros(5, np.float32), "b": np.arange(2 * 7 * 30, dtype=np.float32).reshape(14, 30)}, file)
    return file


@given(st.data())
def test_every_cut_into_blocks(file, data):
    tensor = read_header(file)[1]
    shape = data.draw(st.sampled_from([(14, 30), (2, 7, 30), (7, 2, 30)]))
    start = data.draw(st.integers(0, shape[0]))
    stop = data.draw(st.integers(start, shape[0]))
    found = np.full((stop - start, *shape[1:]), -1, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_files, "BLOCK_BYTES", data.draw(st.integers(0, 2000)))
        for place, values in tensor.blocks(shape, slice(start, stop)):
            found[place] = values
    np.testing.assert_array_equal(found, np.arange(420, dtype=np.float32).reshape(shape)[start:stop], strict=True)
    np.testing.assert_array_equal(tensor.read().reshape(shape)[start:stop], found, strict=True)


def test_a_model_of_many_blocks(tmp_path, monkeypatch):
    source = write_random_llama(tmp_path / "in")
    expected = read_model(source).params
    monkeypatch.setattr(tensor_files, "BLOCK_BYTES", 700)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), read_model(source).params, expected)
