"""A tensor that lies in a file."""

from __future__ import annotations

import dataclasses
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

    def view(self) -> np.ndarray:
        """The tensor, mapped from the file and not yet in memory; its dtype must be in `DTYPES`."""
        raw = np.memmap(self.file, np.uint8, "r", self.offset, (self.bytes,))
        # A plain array: np.memmap's own machinery is slow on many small slices.
        return np.ndarray(self.shape, DTYPES[self.dtype], buffer=raw)


def corrupt(file: Path, why: str) -> InputError:
    """The error for a file whose contents contradict themselves.

    Args:
        file: the file.
        why: what is wrong.

    Returns:
        An error to raise.
    """
    return InputError(f"{file} is corrupt: {why}; download it again")
