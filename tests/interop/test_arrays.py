"""Copies between layouts against NumPy's own."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rope_jax.interop.arrays import ALIGNMENT, aligned, copy

DTYPES = [np.dtype(name) for name in (np.float32, np.float16, ml_dtypes.bfloat16)]


@given(st.data())
def test_any_order_of_axes_and_any_cut(data):
    ndim = data.draw(st.integers(0, 4))
    shape = data.draw(st.tuples(*[st.integers(0, 700 if ndim < 3 else 9)] * ndim))
    source, kept = (data.draw(st.sampled_from(DTYPES)) for _ in range(2))
    values = np.random.default_rng(0).normal(size=shape).astype(source)
    values = values.transpose(data.draw(st.permutations(range(ndim))))
    values = values[tuple(slice(data.draw(st.integers(0, 3)), None) for _ in range(ndim))]
    target = np.full(values.shape, 7, kept)
    copy(target, values)
    np.testing.assert_array_equal(target, values.astype(kept), strict=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_are_kept(dtype):
    bits = np.arange(2**16, dtype=np.uint16).repeat(dtype.itemsize // 2).view(dtype)  # NaN payloads too
    values = bits.reshape(256, 256).T
    target = np.empty(values.shape, dtype)
    copy(target, values)
    assert target.tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_alignment(dtype):
    for shape in ((), (5,), (33, 1000)):
        array = aligned(shape, dtype)
        assert (array.shape, array.dtype, array.ctypes.data % ALIGNMENT) == (shape, dtype, 0)
        assert array.flags.c_contiguous
        assert array.flags.writeable
