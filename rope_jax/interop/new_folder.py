"""A model folder as it is written: weights, config, what is carried from its source, checksums."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from rope_jax.data.gguf_tokenizer import write_gguf_tokenizer
from rope_jax.errors import InputError
from rope_jax.files import LARGEST, check_inside, check_regular, read_json
from rope_jax.gguf_reader import is_gguf
from rope_jax.interop.atomic import check_space, check_target, counter, write_atomically
from rope_jax.interop.export_config import describe_export
from rope_jax.interop.hub import TOKENIZER_FILES
from rope_jax.interop.model_folder import inspect, widest_dtype
from rope_jax.interop.new_tensor_files import (
    SHARD_BYTES,
    NewTensor,
    copy_tensors,
    plan_shards,
    write_index,
    write_sharded,
)
from rope_jax.interop.tensor_files import DTYPES, SINGLE, StoredTensor, find_tensors
from rope_jax.interop.weights import EMBEDDING
from rope_jax.rope.embedding import ScaleVector

# `sha256sum --check SHA256SUMS` reads it.
CHECKSUMS = "SHA256SUMS"


def check_folder(folder: Path, source: Path | None, overwrite: bool) -> None:
    """Checks that a model folder may be created, or replaced: it must not be or hold the `source` that is read."""
    if source is not None:
        if not os.path.isdir(source) and not is_gguf(source):
            raise InputError(f"`source` {source} is not a folder: give a model folder")
        inside, outside = (Path(os.path.realpath(path)) for path in (source, folder))
        if inside == outside or outside in inside.parents:
            raise InputError(f"{folder} holds the source model {source}: write to another folder")
    check_target(folder, overwrite, mark="config.json")


def files_to_carry(source: Path) -> list[Path]:
    """The small files of a model folder that an export copies, of which a GGUF file has none.

    `InputError` for a link out of the folder.
    """
    files = [source / name for name in ("generation_config.json", *TOKENIZER_FILES) if (source / name).is_file()]
    for file in files:
        check_inside(source, file)
        check_regular(file, LARGEST)
    return files


def write_folder(
    folder: Path,
    described: Mapping,
    write_tensors: Callable[[Path], Mapping[str, str]],
    source: Path | None,
    extra_files: Callable[[Path], object] | None,
) -> None:
    """Writes a model folder, whole or not at all.

    Args:
        folder: absolute path of the folder to create or replace.
        described: the object of `config.json`.
        write_tensors: writes the tensor files into the folder that it is given; returns the SHA-256 of each by name.
        source: model folder, or GGUF file, whose tokenizer goes along; None for none.
        extra_files: writes further files into the folder that it is given, which has all others but checksums.
    """

    def write(place: Path) -> None:
        place.mkdir()
        digests = write_tensors(place)
        (place / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        for file in files_to_carry(source) if source else ():
            shutil.copyfile(file, place / file.name)
        if source and is_gguf(source):
            write_gguf_tokenizer(source, place)
        if extra_files is not None:
            extra_files(place)
        _allow_length(place / "tokenizer_config.json", described["max_position_embeddings"])
        lines = []
        for file in sorted(path for path in place.rglob("*") if path.is_file()):
            name = file.relative_to(place).as_posix()
            lines.append(f"{digests.get(name) or _digest(file)}  {name}\n")
        (place / CHECKSUMS).write_text("".join(lines), encoding="utf-8")

    write_atomically(folder, write)


def rescale_folder(
    source: str | Path,
    target: str | Path,
    rope: ScaleVector,
    *,
    context: int,
    provenance: Mapping,
    extra_files: Callable[[Path], object] | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Writes a copy of a model under another scale vector: a zero-shot extension of its context.

    A folder's tensors are copied byte for byte, whatever their dtype; a GGUF file's are written in the dtype that holds
    all of them. Everything is checked first, and the folder appears whole or not at all. Call it in one process.

    Args:
        source: model folder, or GGUF file.
        target: folder to create.
        rope: the whole scale vector, factors ``[D/2]``, which replaces that of the source's config.
        context, provenance, extra_files, overwrite, progress: as of `write_model`.

    Raises:
        InputError: naming the argument, folder or file and the fix. Nothing remains then.
    """
    source, target = Path(source), Path(os.path.abspath(target))
    check_folder(target, source, overwrite)
    known, tensors = inspect(source)
    dtype = widest_dtype(tensors) if is_gguf(source) else DTYPES[tensors[EMBEDDING.name].dtype].name
    described = describe_export(known.config, rope, context=context, dtype=dtype, provenance=provenance, source=known)
    total, write = _converted(tensors, dtype) if is_gguf(source) else _copied(source)
    check_space(target, total + sum(file.stat().st_size for file in files_to_carry(source)))
    write_folder(target, described, lambda place: write(place, counter(total, progress)), source, extra_files)


# Writes the tensor files of a model, telling of the bytes that it took; returns the SHA-256 of each file by name.
_Write = Callable[[Path, Callable[[int], None]], Mapping[str, str]]


def _copied(source: Path) -> tuple[int, _Write]:
    """Bytes and writer of a folder's tensors."""
    # The files hold buffers of old checkpoints too, which no row of the table asks for.
    stored = find_tensors(source)
    files = sorted({tensor.file for tensor in stored.values()})
    for file in files:
        check_inside(source, file)
    total = sum(tensor.bytes for tensor in stored.values())

    def write(place: Path, advance: Callable[[int], None]) -> dict[str, str]:
        digests = {file.name: copy_tensors(file, place / file.name, advance) for file in files}
        if files[0].name != SINGLE:
            write_index(place, {name: tensor.file.name for name, tensor in stored.items()}, total)
        return digests

    return total, write


def _converted(tensors: Mapping[str, StoredTensor], dtype: str) -> tuple[int, _Write]:
    """The same of a GGUF file's tensors in one dtype."""
    planned = [NewTensor(name, np.dtype(jnp.dtype(dtype)), tensor.shape) for name, tensor in tensors.items()]

    def write(place: Path, advance: Callable[[int], None]) -> dict[str, str]:
        values = (tensor.read() for tensor in tensors.values())
        return write_sharded(place, plan_shards(planned, SHARD_BYTES), values, advance)

    return sum(tensor.bytes for tensor in planned), write


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _allow_length(file: Path, context: int) -> None:
    """Raises the tokenizer's own limit to the new context: some engines take the lower of the two."""
    try:
        settings = read_json(file)
    except InputError:  # absent, or refused where it is read
        return
    limit = settings.get("model_max_length") if isinstance(settings, dict) else None
    if isinstance(limit, int | float) and limit < context:
        settings["model_max_length"] = context
        file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
