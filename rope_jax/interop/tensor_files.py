"""Where the tensors of a model folder lie, checked before one is read.

The format is eight bytes of header length, a JSON header and the tensors' bytes
(https://github.com/huggingface/safetensors#format). It is read and written here because the library's NumPy
interface has no bfloat16 and takes a whole shard in memory.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from rope_jax.errors import InputError
from rope_jax.files import read_json_object
from rope_jax.interop.stored import DTYPES, MAX_HEADER_BYTES, StoredTensor, corrupt
from rope_jax.interop.torch_files import read_torch_header

SINGLE = "model.safetensors"
INDEX = f"{SINGLE}.index.json"
TORCH_SINGLE = "pytorch_model.bin"


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


def _find_sharded(folder, index, read):
    places = read_json_object(index).get("weight_map")
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
