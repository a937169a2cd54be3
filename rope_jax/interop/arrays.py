"""Copies of arrays between memory layouts and dtypes, at the speed of the memory."""

import numpy as np

from rope_jax.errors import InputError

# Rows and columns that are transposed at a time. NumPy alone walks along one of the two arrays and strides through the
# other, a cache line per number: 9 times slower.
TILE = (512, 256)

# XLA takes host memory over without a copy if it starts at a multiple of this.
ALIGNMENT = 64


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that JAX on a CPU can take over without a copy."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def copy(target: np.ndarray, values: np.ndarray) -> None:
    """Copies an array of any layout, with a cast if dtypes differ; what the target cannot hold becomes infinite."""
    if target.dtype == values.dtype and target.dtype.itemsize == 2:
        # Bits: NumPy copies its own dtypes without the interpreter's lock.
        target, values = target.view(np.uint16), values.view(np.uint16)
    axes = sorted(range(target.ndim), key=lambda axis: -target.strides[axis])
    target, values = target.transpose(axes), values.transpose(axes)
    shape = _merged_shape(target, values)
    target, values = target.reshape(shape), values.reshape(shape)
    with np.errstate(over="ignore", invalid="ignore"):
        if values.ndim == 2 and values.strides[0] < values.strides[1]:
            _transpose(target, values.T)
        else:
            np.copyto(target, values, casting="unsafe")


def cast(values: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """A tensor in another dtype, rounded once; `InputError` if that cannot hold a finite value."""
    if values.dtype == dtype:
        return values
    result = np.empty(values.shape, dtype)
    copy_cast(result, values, name)
    return result


def copy_cast(target: np.ndarray, values: np.ndarray, name: str) -> None:
    """Copies a tensor into another layout and dtype; `InputError` if that cannot hold a finite value."""
    copy(target, values)
    narrower = target.dtype not in (values.dtype, np.float32)
    if narrower and not np.isfinite(target).all() and np.isfinite(values).all():
        raise InputError(f"{name} has values beyond the range of {target.dtype.name}: use bfloat16 or float32")


def _merged_shape(*arrays: np.ndarray) -> list[int]:
    """Their shape with neighbouring axes made one where that needs no copy, such as heads and the parts of each."""
    shape: list[int] = []
    for axis, size in enumerate(arrays[0].shape):
        if shape and all(array.strides[axis - 1] == size * array.strides[axis] for array in arrays):
            shape[-1] *= size
        else:
            shape.append(size)
    return shape


def _transpose(target: np.ndarray, values: np.ndarray) -> None:
    """`target[j, i] = values[i, j]`, by tiles that fit into the second cache."""
    rows, columns = TILE
    # Rows that are a power of two apart would share a few places of the cache.
    scratch = np.empty((rows, columns + 32), values.dtype)
    for column in range(0, values.shape[1], columns):
        for row in range(0, values.shape[0], rows):
            tile = values[row : row + rows, column : column + columns]
            near = scratch[: tile.shape[0], : tile.shape[1]]
            np.copyto(near, tile)
            np.copyto(target[column : column + columns, row : row + rows], near.T, casting="unsafe")
