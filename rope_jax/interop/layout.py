"""Copies between memory layouts, at the speed of the memory."""

from __future__ import annotations

import numpy as np

# Source rows that are copied at a time where rows become columns: 32 two-byte numbers fill a cache line of the
# target, so that each line is written once. (NumPy alone writes every line as often as it has numbers: 9 times slower.)
ROWS = 32

# XLA takes host memory over without a copy if it starts at a multiple of this.
ALIGNMENT = 64


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that JAX on a CPU can take over without a copy.

    Args:
        shape: its shape.
        dtype: its dtype.

    Returns:
        The array.
    """
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def dense(values: np.ndarray) -> np.ndarray:
    """An array in C order, copied if it is in another.

    Args:
        values: any layout.

    Returns:
        The array or its copy.
    """
    if values.flags.c_contiguous:
        return values
    result = np.empty(values.shape, values.dtype)
    copy(result, values)
    return result


def copy(target: np.ndarray, values: np.ndarray) -> None:
    """Copies an array, with a cast if the dtypes differ; beyond the range of the target's it gives infinities.

    Args:
        target: C order.
        values: the same shape, any layout.
    """
    if target.dtype == values.dtype and target.dtype.itemsize == 2:
        # Bits: NumPy copies its own dtypes without the interpreter's lock.
        target, values = target.view(np.uint16), values.view(np.uint16)
    with np.errstate(over="ignore", invalid="ignore"):
        for block in _blocks(values):
            np.copyto(target[block], values[block], casting="unsafe")


def _blocks(values: np.ndarray):
    """Indices of parts that are read along their rows and fit into a cache."""
    shape, strides = values.shape, values.strides
    slowest_first = sorted(range(values.ndim), key=lambda axis: -strides[axis])
    # A row is what lies in one piece; its last axes may be several, such as the heads and the parts of each.
    row = slowest_first[-1:]
    while len(row) < values.ndim:
        before = slowest_first[-len(row) - 1]
        if before != row[0] - 1 or strides[before] != strides[row[0]] * shape[row[0]]:
            break
        row.insert(0, before)
    if not row or row[-1] == values.ndim - 1:
        yield ...
        return
    *outer, rows = slowest_first[: -len(row)]
    for place in np.ndindex(*(shape[axis] for axis in outer)):
        for start in range(0, shape[rows], ROWS):
            index = [slice(None)] * values.ndim
            for axis, i in zip(outer, place):
                index[axis] = slice(i, i + 1)
            index[rows] = slice(start, start + ROWS)
            yield tuple(index)
