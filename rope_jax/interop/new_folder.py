"""A model folder as it is written: weights, config, what is carried from its source, checksums."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from rope_jax.errors import InputError
from rope_jax.interop.atomic import check_target, write_atomically
from rope_jax.interop.hub import TOKENIZER_FILES

# `sha256sum --check SHA256SUMS` reads it.
CHECKSUMS = "SHA256SUMS"


def check_folder(folder: Path, source: Path | None, overwrite: bool) -> None:
    """Checks that a model folder may be created, or replaced: it must not be or hold the `source` that is read."""
    if source is not None:
        if not source.is_dir():
            raise InputError(f"`source` {source} is not a folder: give a model folder", field="source")
        inside, outside = source.resolve(), folder.resolve()
        if inside == outside or outside in inside.parents:
            raise InputError(f"{folder} holds the source model {source}: write to another folder")
    check_target(folder, overwrite, mark="config.json")


def files_to_carry(source: Path) -> list[Path]:
    """The small files of a model folder that an export copies."""
    return [source / name for name in ("generation_config.json", *TOKENIZER_FILES) if (source / name).is_file()]


def write_folder(
    folder: Path,
    described: Mapping,
    write_tensors: Callable[[Path], Mapping[str, str]],
    carried: Iterable[Path],
    extra_files: Callable[[Path], object] | None,
) -> None:
    """Writes a model folder, whole or not at all.

    Args:
        folder: absolute path of the folder to create or replace.
        described: the object of `config.json`.
        write_tensors: writes the tensor files into the folder that it is given; returns the SHA-256 of each by name.
        carried: files to copy.
        extra_files: writes further files into the folder that it is given.
    """

    def write(place: Path) -> None:
        place.mkdir()
        digests = write_tensors(place)
        for file in carried:
            shutil.copyfile(file, place / file.name)
        if extra_files is not None:
            extra_files(place)
        _allow_length(place / "tokenizer_config.json", described["max_position_embeddings"])
        (place / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        lines = []
        for file in sorted(path for path in place.rglob("*") if path.is_file()):
            name = file.relative_to(place).as_posix()
            lines.append(f"{digests.get(name) or _digest(file)}  {name}\n")
        (place / CHECKSUMS).write_text("".join(lines), encoding="utf-8")

    write_atomically(folder, write)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _allow_length(file: Path, context: int) -> None:
    """Raises the tokenizer's own limit to the new context: some engines take the lower of the two."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    limit = settings.get("model_max_length") if isinstance(settings, dict) else None
    if isinstance(limit, int | float) and limit < context:
        settings["model_max_length"] = context
        file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
