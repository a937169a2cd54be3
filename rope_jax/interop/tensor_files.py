"""The tensors of a model folder, checked before one is read, and read some rows at a time."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from rope_jax.errors import InputError
from rope_jax.files import parse_json_object, read_json_object

SINGLE = "model.safetensors"
INDEX = f"{SINGLE}.index.json"

# Safetensors' names of the dtypes that weights may have.
DTYPES = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}

# Bytes that are read at a time: few enough to stay in the cache until they are copied to their place.
BLOCK_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, not yet read; `dtype` is that format's name, such as 'BF16'."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @contextlib.contextmanager
    def rows(self) -> Iterator[Callable[[int, int], np.ndarray]]:
        """Opens the file; gives a function that reads a range of rows. The dtype must be in `DTYPES`."""
        with safe_open(self.file, "np") as file:
            stored = file.get_slice(self.name)
            yield lambda start, stop: stored[start:stop]

    def read(self) -> np.ndarray:
        """The whole tensor."""
        with self.rows() as rows:
            return rows(0, self.shape[0])

    def blocks(self, shape: tuple[int, ...], rows: slice) -> Iterator[tuple[slice, np.ndarray]]:
        """Reads rows of the tensor, `BLOCK_BYTES` at a time.

        Args:
            shape: the tensor's shape with its first axis split in several or as it is, such as ``[heads, head_dim,
                embed]`` for ``[heads * head_dim, embed]``.
            rows: range of the first axis of `shape`, start and stop given.

        Yields:
            Position of a block within `rows`, and its values ``[n, *shape[1:]]``.
        """
        width = self.shape[0] // shape[0]
        step = max(BLOCK_BYTES * shape[0] // self.bytes, 1)
        with self.rows() as read:
            for start in range(rows.start, rows.stop, step):
                stop = min(start + step, rows.stop)
                values = read(start * width, stop * width)
                yield slice(start - rows.start, stop - rows.start), values.reshape(-1, *shape[1:])


def find_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Finds the tensors of a model folder by name, without reading one.

    Absent, truncated or corrupt weights are an `InputError`, and so is an index that disagrees with its files.
    """
    file, index = folder / SINGLE, folder / INDEX
    if file.exists() and index.exists():
        raise InputError(f"{folder} holds both {SINGLE} and {INDEX}: remove the one that is out of date")
    if file.exists():
        return {tensor.name: tensor for tensor in read_header(file)}
    if index.exists():
        return _find_sharded(folder, index)
    if any(folder.glob("pytorch_model*.bin")):
        raise InputError(
            f"{folder} holds its weights as a pickle, which can run code and is not opened. If you trust its source, "
            'convert it: python -c "from transformers import AutoModelForCausalLM as M; '
            f"f = {str(folder)!r}; M.from_pretrained(f, dtype='auto').save_pretrained(f)\""
        )
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        raise InputError(
            f"{folder} holds its weights as a pickle (.bin or .pth) in another layout than transformers': get the "
            "model in Hugging Face format, with safetensors"
        )
    raise InputError(
        f"{folder} holds no weights: it needs {SINGLE}, or {INDEX} and the files it names. Of a model on the Hub that "
        "has only .bin files, fetch all with `hf download MODEL --local-dir FOLDER`, and give FOLDER"
    )


def read_header(file: Path) -> list[StoredTensor]:
    """The tensors of a safetensors file, in the order of their bytes; `InputError` if it is corrupt."""
    if not os.path.isfile(file):
        raise InputError(f"{file} is missing: download the model again, every file of it")
    try:
        # The library refuses headers above 100 MB, malformed entries, and tensors that overlap, leave gaps or do not
        # end with the file.
        with safe_open(file, "np"):
            pass
    except SafetensorError as error:
        with file.open("rb") as stream:
            if stream.read(8) == b"version ":
                raise InputError(f"{file} is a Git LFS pointer and not the weights: run `git lfs pull`") from None
        raise InputError(f"{file} is truncated or corrupt ({error}): download it again") from None
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        # The library takes the last of several tensors of one name; here they are an error.
        header = parse_json_object(file, stream.read(length).decode("utf-8"))
    header.pop("__metadata__", None)
    entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    return [
        StoredTensor(name, file, entry["dtype"], tuple(entry["shape"]), end - begin)
        for name, entry in entries
        for begin, end in [entry["data_offsets"]]
    ]


def _find_sharded(folder: Path, index: Path) -> dict[str, StoredTensor]:
    places = read_json_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index} has no weight_map: download it again")
    for name, file in places.items():
        if not isinstance(file, str) or not _is_plain_name(file) or not file.endswith(".safetensors"):
            raise InputError(
                f"{index} places tensor {name} in {file!r}: only .safetensors files of the folder itself are read; "
                "get the model from a source that you trust"
            )
    found: dict[str, StoredTensor] = {}
    for file in sorted(set(places.values())):
        for tensor in read_header(folder / file):
            if tensor.name in found:
                raise InputError(
                    f"{folder}: tensor {tensor.name} is in both {found[tensor.name].file.name} and {file}: "
                    "download the model again"
                )
            found[tensor.name] = tensor
    for name, file in places.items():
        if name not in found or found[name].file.name != file:
            raise InputError(f"{folder / file} lacks tensor {name}, which {INDEX} places there: download both again")
    for name, tensor in found.items():
        if name not in places:
            raise InputError(f"{tensor.file} holds tensor {name}, which {INDEX} does not list: download both again")
    return found


def _is_plain_name(file: str) -> bool:
    # Windows separators and drives too: a folder may be made on one system and read on another.
    return not any(character in file for character in "/\\:\0") and file not in ("", ".", "..")
