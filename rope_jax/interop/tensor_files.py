"""Safetensors files, checked before they are read and read without a copy; written one tensor at a time.

The format is eight bytes of header length, a JSON header and the tensors' bytes
(https://github.com/huggingface/safetensors#format). It is read and written here because the library's NumPy
interface has no bfloat16 and takes a whole shard in memory.
"""

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

from rope_jax.errors import InputError
from rope_jax.interop.json_fields import read_json
from rope_jax.interop.stored import DTYPE_NAMES, DTYPES, MAX_HEADER_BYTES, StoredTensor, corrupt
from rope_jax.interop.torch_files import read_torch_header

SINGLE = "model.safetensors"
INDEX = f"{SINGLE}.index.json"
TORCH_SINGLE = "pytorch_model.bin"

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


def find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Reads where the weights of a model folder lie, and no tensor.

    Args:
        folder: holds `model.safetensors`, or `model.safetensors.index.json` and the files it names; or, where there
            are no safetensors, `pytorch_model.bin` or its index and files.

    Returns:
        Tensor name -> where it lies.

    Raises:
        InputError: naming the file and the fix, if weights are absent, truncated or corrupt, or if index and files
            disagree.
    """
    for single, read in ((SINGLE, read_header), (TORCH_SINGLE, read_torch_header)):
        file, index = folder / single, folder / f"{single}.index.json"
        if file.exists() and index.exists():
            raise InputError(f"{folder} holds both {single} and {index.name}: remove the one that is out of date")
        if file.exists():
            return {tensor.name: tensor for tensor in read(file)}
        if index.exists():
            return _find_sharded(folder, index, read)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        raise InputError(
            f"{folder} holds its weights as a pickle (.bin or .pth) of another layout than transformers', which is not "
            "read here: convert it with `safetensors`, for example transformers' save_pretrained"
        )
    raise InputError(f"{folder} holds no weights: it needs {SINGLE}, or {INDEX} and the files it names")


def read_header(file: Path) -> list[StoredTensor]:
    """Reads and checks the header of one safetensors file.

    Args:
        file: safetensors file; may be a symbolic link, as in the Hugging Face cache.

    Returns:
        Its tensors, in the order of their bytes.

    Raises:
        InputError: naming the file, what is wrong and the fix.
    """
    if not file.is_file():
        raise InputError(f"{file} is missing: download the model again, every file of it")
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if prefix == b"version ":
            raise InputError(f"{file} is a Git LFS pointer and not the weights: run `git lfs pull`")
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > size - 8:
            raise InputError(f"{file} is truncated or no safetensors file ({size} bytes): download it again")
        if length > MAX_HEADER_BYTES:
            raise corrupt(file, f"its header claims {length} bytes")
        text = stream.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=lambda pairs: _unique(file, pairs))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise corrupt(file, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise corrupt(file, "its header is not an object")

    tensors = [_header_entry(file, name, entry, 8 + length) for name, entry in header.items() if name != "__metadata__"]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.bytes))
    end = 8 + length
    for tensor in tensors:
        if tensor.offset != end:
            raise corrupt(file, f"tensor {tensor.name} starts at byte {tensor.offset} instead of {end}")
        end += tensor.bytes
    if size < end:
        raise InputError(f"{file} is truncated: it has {size} of {end} bytes; download it again")
    if size > end:
        raise corrupt(file, f"it has {size} bytes where its header describes {end}")
    return tensors


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


def _find_sharded(folder, index, read):
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index} has no weight_map: download it again")
    suffix = ".bin" if read is read_torch_header else ".safetensors"
    for name, file in places.items():
        if not isinstance(file, str) or not _is_plain_name(file) or not file.endswith(suffix):
            raise InputError(
                f"{index}: tensor {name} is said to lie in {file!r}: only {suffix} files of the folder itself"
                " are read; get the model from a source that you trust"
            )
    found: dict[str, StoredTensor] = {}
    for file in sorted(set(places.values())):
        for tensor in read(folder / file):
            if tensor.name in found:
                raise InputError(
                    f"{folder}: tensor {tensor.name} is in both {found[tensor.name].file.name} and {file}: "
                    "download the model again"
                )
            found[tensor.name] = tensor
    for name, file in places.items():
        if name not in found or found[name].file.name != file:
            raise InputError(f"{folder / file} lacks tensor {name}, which {index.name} puts there: download both again")
    for name, tensor in found.items():
        if name not in places:
            raise InputError(
                f"{tensor.file} holds tensor {name}, which {index.name} does not list: download both again"
            )
    return found


def _encoded(header: dict) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _is_plain_name(file):
    # Windows separators and drives too: a folder may be read on one system and made on another.
    return not any(character in file for character in "/\\:\0") and file not in ("", ".", "..")


def _unique(file, pairs):
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"{file} holds tensor {twice} twice: download or export it again")
    return value


def _header_entry(file, name, entry, start):
    def natural(values, count=None):
        return (
            isinstance(values, list)
            and all(type(value) is int and value >= 0 for value in values)
            and (count is None or len(values) == count)
        )

    known = isinstance(entry, dict) and isinstance(entry.get("dtype"), str)
    if not known or not natural(entry.get("shape")) or not natural(entry.get("data_offsets"), 2):
        raise corrupt(file, f"the header entry of tensor {name} is malformed")
    begin, end = entry["data_offsets"]
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    # Buffers of other dtypes may lie in the file, as long as no weight is one; their length is not checked.
    if begin > end or (dtype in DTYPES and end - begin != math.prod(shape) * DTYPES[dtype].itemsize):
        raise corrupt(file, f"tensor {name} of {dtype} {list(shape)} is said to take {end - begin} bytes")
    return StoredTensor(name, file, dtype, shape, start + begin, end - begin)
