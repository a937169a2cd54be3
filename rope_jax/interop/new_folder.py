"""A model folder that appears whole or not at all, with the checksums of what it holds."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from rope_jax.errors import InputError
from rope_jax.interop.hub import TOKENIZER_FILES

# `sha256sum --check SHA256SUMS` reads it.
CHECKSUMS = "SHA256SUMS"

# What config.json, an index, checksums and file headers may take beside the tensors.
_MARGIN_BYTES = 1 << 20


def check_target(folder: Path, source: Path | None, overwrite: bool) -> None:
    """Checks that a folder may be created, or replaced.

    Args:
        folder: absolute path of the folder to create.
        source: model folder that is read meanwhile.
        overwrite: whether a model folder that is already there may be replaced.

    Raises:
        InputError: if `folder` is or holds `source`, exists and may not be replaced, or is no model folder.
    """
    if source is not None:
        if not source.is_dir():
            raise InputError(f"source {source} is not a folder: give the model folder to carry files from")
        inside, outside = source.resolve(), folder.resolve()
        if inside == outside or outside in inside.parents:
            raise InputError(f"{folder} holds the source model {source}: write to another folder")
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise InputError(f"{folder} already exists: give another folder, or ask to overwrite it")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a model folder (no config.json), so it is not replaced: remove it first")


def check_space(folder: Path, need: int) -> None:
    """Checks that the disk has room.

    Args:
        folder: absolute path of the folder to create.
        need: bytes that it will take, small files of ours not counted.

    Raises:
        InputError: if there is less.
    """
    need += _MARGIN_BYTES
    place = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < need:
        raise InputError(
            f"{folder} needs {need / 1e9:.3f} GB and {place} has {free / 1e9:.3f} GB free: free some, or "
            "write elsewhere"
        )


def files_to_carry(source: Path, with_tokenizer: bool) -> list[Path]:
    """Small files of a model folder that an export carries on.

    Args:
        source: model folder.
        with_tokenizer: whether tokenizer files are among them.

    Returns:
        Those that exist.
    """
    names = ("generation_config.json", *(TOKENIZER_FILES if with_tokenizer else ()))
    return [source / name for name in names if (source / name).is_file()]


def carry_files(files: list[Path], place: Path) -> None:
    """Copies files into a folder in the making.

    Args:
        files: from `files_to_carry`.
        place: the folder.
    """
    for file in files:
        shutil.copyfile(file, place / file.name)


def finish(place: Path, config: Mapping, context: int, digests: Mapping[str, str]) -> None:
    """Completes a folder in the making: the tokenizer's limit, `config.json`, checksums.

    Args:
        place: the folder, with everything else in it.
        config: what goes into `config.json`.
        context: tokens that the model is good for.
        digests: file name to SHA-256 in hexadecimal, of files that were summed while they were written; the
            others are read again.
    """
    _allow_length(place / "tokenizer_config.json", context)
    (place / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    lines = []
    for file in sorted(path for path in place.rglob("*") if path.is_file()):
        name = file.relative_to(place).as_posix()
        digest = digests.get(name) or _digest(file)
        lines.append(f"{digest}  {name}\n")
    (place / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def counter(total: int, progress: Callable[[int, int], object] | None) -> Callable[[int], None]:
    """Adds up what has been written.

    Args:
        total: bytes in all.
        progress: called with the bytes that are done and `total`; or None.

    Returns:
        A function to call with every number of bytes that were just written.
    """
    done = 0

    def advance(count):
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return advance


def write_atomically(folder: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder under another name beside its own, and renames it when it is whole.

    Args:
        folder: absolute path of the folder to create or replace; its parent is created too.
        write: fills the empty folder that it is given.

    Raises:
        InputError: if the place cannot be written. Nothing is left behind, whatever is raised.
    """
    mark = uuid.uuid4().hex[:8]
    place, old = (folder.with_name(f".{folder.name}.{mark}.{end}") for end in ("new", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # What a killed export left behind is as large as the model.
        for unfinished in folder.parent.glob(f".{glob.escape(folder.name)}.????????.new"):
            shutil.rmtree(unfinished, ignore_errors=True)
        place.mkdir()
        write(place)
        if os.path.lexists(folder):
            folder.rename(old)
        place.rename(folder)
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        if os.path.lexists(old) and not os.path.lexists(folder):
            old.rename(folder)
        if isinstance(error, OSError):
            raise InputError(f"{folder} cannot be written ({error}): check the place and its free space") from error
        raise
    if old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old, ignore_errors=True)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _allow_length(file: Path, context: int):
    """Raises the tokenizer's own limit to the new context: some engines take the lower of the two."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    limit = settings.get("model_max_length") if isinstance(settings, dict) else None
    if isinstance(limit, int | float) and limit < context:
        settings["model_max_length"] = context
        file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
