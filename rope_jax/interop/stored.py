"""A tensor that lies in a file."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from rope_jax.errors import InputError

# Safetensors' names of the dtypes that weights may have here.
DTYPES = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# The limit that the reference implementation sets.
MAX_HEADER_BYTES = 100_000_000


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies; nothing of it is read until `view`.

    Attributes:
        name: tensor name.
        file: the file that holds it.
        dtype: safetensors' name of its dtype, such as `"BF16"`.
        shape: its shape.
        offset: position of its first byte in the file.
        bytes: its length.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int

    def blocks(self, shape: tuple[int, ...], rows: slice, room: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Reads the tensor some rows at a time, which is faster than to go through the mapped file.

        Args:
            shape: to see the tensor as.
            rows: which of them to read; start and stop are given, the step is 1.
            room: memory to read into, uint8; too little for one row is replaced.

        Yields:
            Where the block lies within the rows that are read, and its values `[n, *shape[1:]]`, which last until the
            next block is asked for.

        Raises:
            InputError: if the file has become shorter.
        """
        dtype, row = DTYPES[self.dtype], self.bytes // max(shape[0], 1)
        if len(room) < row:
            room = np.empty(row, np.uint8)
        step = max(len(room) // max(row, 1), 1)
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.offset + rows.start * row)
            for start in range(rows.start, rows.stop, step):
                block = room[: min(step, rows.stop - start) * row]
                read_exactly(stream, block)
                values = block.view(dtype).reshape(-1, *shape[1:])
                yield slice(start - rows.start, start - rows.start + len(values)), values

    def view(self) -> np.ndarray:
        """The tensor, mapped from the file and not yet in memory; its dtype must be in `DTYPES`."""
        raw = np.memmap(self.file, np.uint8, "r", self.offset, (self.bytes,))
        # A plain array: np.memmap's own machinery is slow on many small slices.
        return np.ndarray(self.shape, DTYPES[self.dtype], buffer=raw)


def read_exactly(stream: io.RawIOBase, target: np.ndarray) -> None:
    """Fills an array with the next bytes of a file.

    Args:
        stream: unbuffered file.
        target: contiguous, of any dtype.

    Raises:
        InputError: if the file ends before.
    """
    view = memoryview(target.reshape(-1).view(np.uint8))
    while view:
        count = stream.readinto(view)
        if not count:
            raise InputError(f"{stream.name} has become shorter while it was read: start again")
        view = view[count:]


def corrupt(file: Path, why: str) -> InputError:
    """The error for a file whose contents contradict themselves.

    Args:
        file: the file.
        why: what is wrong.

    Returns:
        An error to raise.
    """
    return InputError(f"{file} is corrupt: {why}; download it again")
