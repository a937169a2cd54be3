"""Large files and folders that appear whole or not at all."""

import glob
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from rope_jax.errors import InputError
from rope_jax.files import DISK_FULL

# What config.json, an index, checksums and file headers may take beside the tensors.
_MARGIN_BYTES = 1 << 20


def check_target(target: Path, overwrite: bool, mark: str = "") -> None:
    """Checks that a path may be created, or replaced: a folder only if it holds the file `mark`."""
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise InputError(f"{target} already exists: give another name, or set `overwrite`", field="overwrite")
    if mark and not os.path.isfile(target / mark):
        raise InputError(f"{target} holds no {mark}, so it is not replaced: remove it first")


def check_space(target: Path, need: int) -> None:
    """Checks that the disk has room for `need` bytes, headers not counted."""
    place = next(parent for parent in target.parents if os.path.exists(parent))
    need, free = need + _MARGIN_BYTES, shutil.disk_usage(place).free
    if free < need:
        raise InputError(
            f"{target} needs {need / 1e9:.3f} GB and {place} has {free / 1e9:.3f} GB free: free some, or write "
            "elsewhere"
        )


def write_atomically(target: Path, write: Callable[[Path], object]) -> None:
    """Writes a file or folder under another name beside its own, and renames it when it is whole.

    `write` creates it at the path that it is given. Whatever is raised, nothing new remains, and what was replaced is
    back. A place that cannot be written is an `InputError`, and a disk that has filled up an `OSError` that names the
    target.
    """
    mark = uuid.uuid4().hex[:8]
    place, old = (target.with_name(f".{target.name}.{mark}.{end}") for end in ("new", "old"))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # What a killed export left is as large as the model.
        for unfinished in target.parent.glob(f".{glob.escape(target.name)}.????????.new"):
            _remove(unfinished)
        write(place)
        if place.is_dir() and os.path.lexists(target):
            target.rename(old)
        place.replace(target)
    except BaseException as error:
        _remove(place)
        if os.path.lexists(old) and not os.path.lexists(target):
            old.rename(target)
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise OSError(error.errno, error.strerror, str(target)) from error
        if isinstance(error, OSError):
            raise InputError(f"{target} cannot be written ({error}): check the place and its free space") from error
        raise
    _remove(old)


def counter(total: int, progress: Callable[[int, int], object] | None) -> Callable[[int], None]:
    """A function from bytes that were just done; it calls `progress` with the bytes done so far and `total`."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return advance


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
