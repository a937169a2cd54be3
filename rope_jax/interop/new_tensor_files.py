"""Safetensors files, written or copied one tensor at a time, with their checksums.

The safetensors library writes a file from tensors that are all in memory, each contiguous. A checkpoint's are neither
here: they are transposed, cast and gathered one by one, in files of 5 GB. So files are written by the format's
definition (https://github.com/huggingface/safetensors#format): eight bytes of header length, a JSON header, the
tensors' bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from rope_jax.errors import InputError
from rope_jax.interop.arrays import copy_cast
from rope_jax.interop.summed_file import PIECE_BYTES, SummedFile
from rope_jax.interop.tensor_files import DTYPES, INDEX, SINGLE, read_header

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# Tensor bytes per file, the limit of transformers.
SHARD_BYTES = 5_000_000_000


@dataclasses.dataclass(frozen=True)
class NewTensor:
    """A tensor about to be written."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its length in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(
    file: Path, tensors: list[NewTensor], values: Iterable[np.ndarray], progress: Callable[[int], None]
) -> str:
    """Writes one safetensors file, holding one tensor at a time in memory, and returns its SHA-256, hexadecimal.

    Args:
        file: file to create.
        tensors: what it will hold, in order.
        values: the tensors in the same order, of any layout; a dtype that differs is cast.
        progress: called with the number of bytes that were just taken.
    """
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.bytes],
        }
        end += tensor.bytes
    with contextlib.closing(SummedFile(file)) as out:
        out.write(_encoded(header))
        for tensor, value in zip(tensors, values):
            if value.shape != tensor.shape:
                raise AssertionError(f"{tensor.name}: {value.shape} where {tensor} was announced")
            for block in _blocks(value, PIECE_BYTES // tensor.dtype.itemsize):
                count = block.size * tensor.dtype.itemsize

                def fill(piece, block=block, tensor=tensor):
                    copy_cast(piece.view(tensor.dtype).reshape(block.shape), block, tensor.name)

                out.append(count, fill)
                progress(count)
        return out.finish()


def copy_tensors(
    source: Path,
    file: Path,
    changed: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    progress: Callable[[int], None],
) -> str:
    """Copies a safetensors file byte for byte, apart from tensors that are changed on the way; returns the SHA-256.

    Args:
        source: file that `read_header` accepts.
        file: file to create.
        changed: tensor name -> function from successive parts of the tensor, ``[n]``, to their new values, of the same
            shape and dtype.
        progress: called with the number of bytes that were just read.
    """
    tensors = read_header(source)
    with source.open("rb", buffering=0) as stream, contextlib.closing(SummedFile(file)) as out:
        out.write(_marked_header(stream))
        for tensor in tensors:
            change = changed.get(tensor.name)

            def fill(piece, tensor=tensor, change=change):
                _read_exactly(stream, piece)
                if change is not None:
                    numbers = piece.view(DTYPES[tensor.dtype])
                    numbers[:] = change(numbers)

            for start in range(0, tensor.bytes, PIECE_BYTES):
                count = min(PIECE_BYTES, tensor.bytes - start)
                out.append(count, fill)
                progress(count)
        return out.finish()


def plan_shards(tensors: Iterable[NewTensor], max_bytes: int) -> list[list[NewTensor]]:
    """Cuts a list of tensors into files of at most `max_bytes`; a larger tensor has a file to itself."""
    shards: list[list[NewTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.bytes
    return shards


def write_sharded(
    folder: Path, shards: list[list[NewTensor]], values: Iterator[np.ndarray], progress: Callable[[int], None]
) -> dict[str, str]:
    """Writes a model's tensors as `model.safetensors`, or as numbered files and an index.

    `values` are all tensors in the order of the shards. Returns the SHA-256 of each file by name.
    """
    if len(shards) == 1:
        return {SINGLE: write_tensors(folder / SINGLE, shards[0], values, progress)}
    places, digests = {}, {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        digests[name] = write_tensors(folder / name, tensors, (next(values) for _ in tensors), progress)
        places |= {tensor.name: name for tensor in tensors}
    write_index(folder, places, sum(tensor.bytes for tensors in shards for tensor in tensors))
    return digests


def write_index(folder: Path, places: Mapping[str, str], total: int) -> None:
    """Writes the index of a model of several files, from tensor names to file names; `total` is in bytes."""
    index = {"metadata": {"total_size": total}, "weight_map": dict(places)}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _blocks(value: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """An array cut along its axes into views of at most `size` numbers, in C order."""
    if value.size <= size:
        yield value
        return
    step = size * len(value) // value.size
    for start in range(0, len(value), step or 1):
        part = value[start : start + (step or 1)]
        yield from _blocks(part if step else part[0], size)


def _marked_header(stream: io.FileIO) -> bytes:
    """The header of a file, with the mark that loaders ask for and not every writer sets."""
    length = np.empty(8, np.uint8)
    _read_exactly(stream, length)
    text = np.empty(int(length.view("<u8")[0]), np.uint8)
    _read_exactly(stream, text)
    header = json.loads(text.tobytes())
    if (header.get("__metadata__") or {}).get("format") == "pt":
        return length.tobytes() + text.tobytes()
    return _encoded({**header, "__metadata__": {**(header.get("__metadata__") or {}), "format": "pt"}})


def _read_exactly(stream: io.FileIO, target: np.ndarray) -> None:
    """Fills a contiguous array with the next bytes of an unbuffered file."""
    view = target.reshape(-1).view(np.uint8).data
    while view:
        count = stream.readinto(view)
        if not count:
            raise InputError(f"{stream.name} has become shorter while it was read: start again")
        view = view[count:]


def _encoded(header: dict) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
