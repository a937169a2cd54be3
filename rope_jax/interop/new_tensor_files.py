"""Safetensors files, written or copied one tensor at a time, with their checksums.

The safetensors library writes tensors that are all in memory, each contiguous; a checkpoint's are transposed, cast and
gathered one by one. The format (https://github.com/huggingface/safetensors#format): length of header, JSON, bytes.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rope_jax.errors import InputError
from rope_jax.interop.arrays import copy_cast
from rope_jax.interop.tensor_files import DTYPES, INDEX, SINGLE, read_header

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# Tensor bytes per file, the limit of transformers.
SHARD_BYTES = 5_000_000_000

# Bytes per write, and pieces in flight: enough that reading and summing continue while the disk stalls the writer, few
# enough that memory is reused; memory that the system hands out for the first time is slow.
PIECE_BYTES = 8 << 20
PIECES = 40


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

    The values come in the order of the tensors, of any layout; a dtype that differs is cast. `progress` is called with
    the number of bytes that were just taken.
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
                with out.piece(block.size * tensor.dtype.itemsize) as piece:
                    copy_cast(piece.view(tensor.dtype).reshape(block.shape), block, tensor.name)
                progress(len(piece))
        return out.finish()


def copy_tensors(source: Path, file: Path, progress: Callable[[int], None]) -> str:
    """Copies the tensors of a safetensors file that `read_header` accepts byte for byte; returns the SHA-256."""
    left = sum(tensor.bytes for tensor in read_header(source))
    with source.open("rb") as stream, contextlib.closing(SummedFile(file)) as out:
        out.write(_marked_header(stream))
        while left:
            with out.piece(min(PIECE_BYTES, left)) as piece:
                if stream.readinto(piece.data) != len(piece):
                    raise InputError(f"{source} has become shorter while it was read: start again")
            progress(len(piece))
            left -= len(piece)
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


def _marked_header(stream: BinaryIO) -> bytes:
    """The header of a file, with the mark that loaders ask for and not every writer sets."""
    length = stream.read(8)
    text = stream.read(int.from_bytes(length, "little"))
    header = json.loads(text)
    metadata = header.get("__metadata__") or {}
    if metadata.get("format") == "pt":
        return length + text
    return _encoded({**header, "__metadata__": {**metadata, "format": "pt"}})


def _encoded(header: dict) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class SummedFile:
    """A new file that is filled in pieces; one thread writes them while another computes the SHA-256.

    The checksum costs as much as writing: computed afterwards it would double the time of an export. A piece that
    cannot be written is an `OSError` of one of the later calls.
    """

    def __init__(self, path: Path):
        self._stream = path.open("xb", buffering=0)
        self._hash = hashlib.sha256()
        self._writer, self._summer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._pieces: deque[tuple[np.ndarray, list[Future]]] = deque(
            (np.empty(PIECE_BYTES, np.uint8), []) for _ in range(PIECES)
        )

    @contextlib.contextmanager
    def piece(self, count: int) -> Iterator[np.ndarray]:
        """The next `count` bytes, at most `PIECE_BYTES`, to be filled in the block."""
        buffer, users = self._pieces.popleft()
        for user in users:
            user.result()
        piece = buffer[:count]
        yield piece
        users = [self._writer.submit(self._write, piece), self._summer.submit(self._hash.update, piece.data)]
        self._pieces.append((buffer, users))

    def write(self, data: bytes) -> None:
        """Appends bytes that are in memory already."""
        for start in range(0, len(data), PIECE_BYTES):
            part = np.frombuffer(data[start : start + PIECE_BYTES], np.uint8)
            with self.piece(len(part)) as piece:
                np.copyto(piece, part)

    def finish(self) -> str:
        """Waits until all is written, and returns the SHA-256 of the file, hexadecimal."""
        for _, users in self._pieces:
            for user in users:
                user.result()
        return self._hash.hexdigest()

    def close(self) -> None:
        """Closes the file, whether it is finished or not."""
        for thread in (self._writer, self._summer):
            thread.shutdown(cancel_futures=True)
        self._stream.close()

    def _write(self, data: np.ndarray) -> None:
        view = data.data
        while view:
            view = view[self._stream.write(view) :]
