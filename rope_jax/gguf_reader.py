"""GGUF files, llama.cpp's format: metadata and the places of tensors.

Every size that a file claims is checked against the file before anything of that size is read or built. The format
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): counts, metadata, tensor descriptions, padding, tensors.
"""

import dataclasses
import math
import mmap
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from rope_jax.errors import InputError

# Value types by the format's numbers, as `struct` writes them.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9

# Entries of all arrays together: vocabularies and merges of the largest models have a tenth.
LARGEST = 1 << 24

# Dimensions of a tensor.
_MOST_DIMENSIONS = 4


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """A tensor in a GGUF file.

    Attributes:
        shape: of its numbers, outermost dimension first.
        kind: GGML's number of its type, such as 1 for F16.
        start: offset of its first byte in the file.
        row_bytes: bytes of each innermost row.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    row_bytes: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.row_bytes


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """What a GGUF file holds, apart from the numbers of its tensors.

    Attributes:
        values: metadata; an array is a list. A float32 is the shortest decimal that rounds to it.
        types: the format's numbers of the type of each value, and of the elements of an array after that of the array.
        big_endian: byte order.
        alignment: of tensors, bytes.
    """

    path: Path
    values: dict[str, Any]
    types: dict[str, tuple[int, ...]]
    tensors: dict[str, GgufTensor]
    big_endian: bool
    alignment: int

    def data(self, tensor: GgufTensor) -> np.ndarray:
        """The bytes of a tensor, mapped into memory: uint8 ``[*shape[:-1], row_bytes]``."""
        shape = (*tensor.shape[:-1], tensor.row_bytes)
        return np.memmap(self.path, np.uint8, "r", offset=tensor.start, shape=shape)


def is_gguf(path: Path) -> bool:
    """Whether a path names an existing file `*.gguf`."""
    return path.suffix.lower() == ".gguf" and os.path.isfile(path)


def import_gguf() -> Any:
    """The package `gguf`, an optional dependency."""
    try:
        import gguf
    except ImportError:
        raise InputError("GGUF files need the package gguf: pip install -e '.[gguf]'") from None
    return gguf


def read_gguf(path: Path) -> GgufFile:
    """Reads metadata and tensor descriptions; `InputError` if the file is absent, malformed or cut."""
    sizes = import_gguf().GGML_QUANT_SIZES
    if not os.path.isfile(path):
        raise InputError(f"{path} is no file: give a .gguf file")
    header = _Header(path)
    if bytes(header.take(4)) != b"GGUF":
        raise header.error("it does not begin with GGUF")
    version = header.number("I")
    if version & 0xFFFF == 0:  # 3 in the other byte order
        header.order, version = ">", version >> 24
    if version not in (2, 3):
        raise header.error(f"version {version} is not known")
    tensor_count, key_count = header.number("Q"), header.number("Q")
    values, types = {}, {}
    for _ in range(key_count):
        key = header.string()
        if key in values:
            raise header.error(f"the key {key!r} is there twice")
        values[key], types[key] = header.value(header.number("I"))
    alignment = values.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment % 8:
        raise header.error(f"general.alignment is {str(alignment)[:40]}")
    described = [_description(header, sizes) for _ in range(tensor_count)]
    begin = -(-header.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, kind, offset, row_bytes in described:
        tensor = GgufTensor(name, shape, kind, begin + offset, row_bytes)
        if name in tensors:
            raise header.error(f"the tensor {name!r} is there twice")
        if offset % alignment or tensor.start + tensor.bytes > header.size:
            raise header.error(f"the tensor {name!r} of {tensor.bytes} bytes at {offset} does not lie in it")
        tensors[name] = tensor
    return GgufFile(path, values, types, tensors, header.order == ">", alignment)


class _Header:
    """Reads a file in order, and nothing beyond its end."""

    def __init__(self, path: Path):
        self.path, self.size = path, path.stat().st_size
        with path.open("rb") as file:
            # An empty file cannot be mapped.
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
        self._bytes = memoryview(whole)
        self.order, self.position, self._entries = "<", 0, 0

    def error(self, why: str) -> InputError:
        return InputError(f"{self.path} is no complete GGUF file ({why}): download or convert it again")

    def take(self, count: int) -> memoryview:
        if count > self.size - self.position:
            raise self.error(f"it ends where {count} bytes should follow byte {self.position}")
        self.position += count
        return self._bytes[self.position - count : self.position]

    def number(self, kind: str) -> Any:
        return struct.unpack(self.order + kind, self.take(struct.calcsize(self.order + kind)))[0]

    def string(self) -> str:
        place = self.position
        try:
            return str(self.take(self.number("Q")), "utf-8")
        except UnicodeDecodeError:
            raise self.error(f"the string at byte {place} is not UTF-8") from None

    def value(self, kind: int) -> tuple[Any, tuple[int, ...]]:
        """A value, and the numbers of its types."""
        if kind == _STRING:
            return self.string(), (kind,)
        if kind in _NUMBERS:
            number = self.number(_NUMBERS[kind])
            # 1e-5 was meant where float64 would read 9.99999975e-06.
            return float(str(np.float32(number))) if kind == _FLOAT32 else number, (kind,)
        if kind != _ARRAY:
            raise self.error(f"value type {kind} is not known")
        element, count = self.number("I"), self.number("Q")
        self._entries += count
        if self._entries > LARGEST:
            raise self.error(f"its arrays have {self._entries} entries or more")
        if element == _STRING:
            return [self.string() for _ in range(count)], (kind, element)
        if element not in _NUMBERS:
            raise self.error(f"an array of type {element} is not known")
        dtype = np.dtype(self.order + _NUMBERS[element])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist(), (kind, element)


def _description(header: _Header, sizes: Any) -> tuple[str, tuple[int, ...], int, int, int]:
    """Name, shape, type, offset and bytes of a row of the next tensor."""
    name, dimensions = header.string(), header.number("I")
    if not 0 < dimensions <= _MOST_DIMENSIONS:
        raise header.error(f"the tensor {name!r} has {dimensions} dimensions")
    shape = tuple(header.number("Q") for _ in range(dimensions))[::-1]
    kind, offset = header.number("I"), header.number("Q")
    # GGML's types are integers to Python.
    block, block_bytes = sizes.get(kind, (0, 0))
    if not block:
        raise header.error(f"the tensor {name!r} is of the type {kind}, which is not known")
    if not all(shape) or shape[-1] % block:
        raise header.error(f"the tensor {name!r} has shape {list(shape)} in blocks of {block}")
    return name, shape, kind, offset, shape[-1] // block * block_bytes
