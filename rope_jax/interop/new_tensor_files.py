"""Safetensors files, written or copied one tensor at a time, with their checksums."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from rope_jax.interop.stored import DTYPE_NAMES
from rope_jax.interop.tensor_files import INDEX, SINGLE, read_header

# Tensor bytes per file, the limit of transformers.
SHARD_BYTES = 5_000_000_000

# Bytes that are copied at a time: enough to keep two threads busy, few enough to stay in the cache.
COPY_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class NewTensor:
    """A tensor about to be written: its name, dtype and shape."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its length in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


class SummedFile:
    """A new file whose SHA-256 is computed while it is written, in a thread of its own."""

    def __init__(self, path: Path):
        """Creates the file.

        Args:
            path: file to create; it must not exist.
        """
        self._stream = path.open("xb", buffering=0)
        self._hash = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future | None = None

    def write(self, data) -> None:
        """Appends bytes.

        Args:
            data: contiguous buffer of bytes; it may be used again once the next `write` has returned.
        """
        hashing = self._thread.submit(self._hash.update, data)
        view = memoryview(data)
        while view:
            view = view[self._stream.write(view) :]
        if self._pending is not None:
            self._pending.result()
        self._pending = hashing

    def close(self) -> str:
        """Closes the file.

        Returns:
            SHA-256 of what was written, hexadecimal.
        """
        self._thread.shutdown()
        self._stream.close()
        return self._hash.hexdigest()


def write_tensors(
    file: Path, tensors: list[NewTensor], values: Iterable[np.ndarray], progress: Callable[[int], None]
) -> str:
    """Writes one safetensors file, holding one tensor at a time in memory.

    Args:
        file: file to create.
        tensors: what it will hold, in order.
        values: the tensors, in the same order.
        progress: called with the number of bytes that were just written.

    Returns:
        SHA-256 of the file, hexadecimal.

    Raises:
        OSError: if the file cannot be written.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
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
            if value.shape != tensor.shape or value.dtype != tensor.dtype:
                raise AssertionError(f"{tensor.name}: {value.dtype}{value.shape} where {tensor} was announced")
            out.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
            progress(tensor.bytes)
        return out.close()


def copy_tensors(
    source: Path,
    file: Path,
    changed: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    progress: Callable[[int], None],
) -> str:
    """Copies a safetensors file byte for byte, apart from tensors that are changed on the way.

    Args:
        source: file that `read_header` accepts.
        file: file to create.
        changed: tensor name to a function of the stored tensor that gives another of its shape and dtype.
        progress: called with the number of bytes that were just written.

    Returns:
        SHA-256 of the new file, hexadecimal.

    Raises:
        OSError: if a file cannot be read or written.
    """
    with source.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        prefix = length.to_bytes(8, "little") + stream.read(length)
    header = json.loads(prefix[8:])
    # Loaders ask for this mark, and not every writer sets it.
    if (header.get("__metadata__") or {}).get("format") != "pt":
        header["__metadata__"] = {**(header.get("__metadata__") or {}), "format": "pt"}
        prefix = _encoded(header)
    with contextlib.closing(SummedFile(file)) as out:
        out.write(prefix)
        for tensor in read_header(source):
            if tensor.name in changed:
                value = np.ascontiguousarray(changed[tensor.name](tensor.view()))
                if value.nbytes != tensor.bytes:
                    raise AssertionError(f"{tensor.name}: {value.dtype}{value.shape} where {tensor} is to be replaced")
                out.write(value.reshape(-1).view(np.uint8))
                progress(tensor.bytes)
                continue
            for start in range(0, tensor.bytes, COPY_BYTES):
                # Mapped, so that summing and writing share what the kernel has read.
                count = min(COPY_BYTES, tensor.bytes - start)
                out.write(np.memmap(source, np.uint8, "r", tensor.offset + start, (count,)))
                progress(count)
        return out.close()


def plan_shards(tensors: Iterable[NewTensor], max_bytes: int) -> list[list[NewTensor]]:
    """Cuts a list of tensors into files of a bounded size.

    Args:
        tensors: in file order.
        max_bytes: tensor bytes per file; a larger tensor has a file to itself.

    Returns:
        Tensors of each file, at least one file.
    """
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

    Args:
        folder: existing folder.
        shards: from `plan_shards`.
        values: all tensors, in the order of the shards.
        progress: called with the number of bytes that were just written.

    Returns:
        File name to SHA-256, hexadecimal.

    Raises:
        OSError: if a file cannot be written.
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
    """Writes the index of a model of several files.

    Args:
        folder: existing folder.
        places: tensor name to file name.
        total: bytes of all tensors.
    """
    index = {"metadata": {"total_size": total}, "weight_map": dict(places)}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _encoded(header: dict) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
