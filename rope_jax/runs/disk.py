"""Disk space that a run needs."""

import os
import shutil

from rope_jax.errors import InputError
from rope_jax.runs.folder import RunFolder


def needed_bytes(folder: RunFolder, parameters: int, trained: int, methods: tuple[str, ...], keep: int) -> int:
    """Bytes that a run has yet to write; methods that have finished are not counted again.

    Each method keeps checkpoints of a float32 state: what is trained, and twice that for AdamW. One more checkpoint
    exists while the newest is written. `trained` counts the numbers that are trained: parameters, or low-rank factors
    beside them. The export adds the parameters.
    """
    waiting = [method for method in methods if not (folder / f"methods/{method}/after.json").exists()]
    return 12 * trained * (keep * len(waiting) + 1) + 4 * parameters if waiting else 0


def check_disk(folder: RunFolder, needed: int) -> None:
    """Checks that a run's files fit on the disk: an InputError if it has less than the `needed` bytes.

    The folder need not exist yet.
    """
    place = next(path for path in (folder.path, *folder.path.parents) if path.exists())
    if not os.access(place, os.W_OK):
        raise InputError(f"`folder` is {folder.path}, and {place} cannot be written to: choose another")
    free = shutil.disk_usage(place).free
    if free < needed:
        raise InputError(
            f"`folder` is {folder.path}, with {free / 1e9:.1f} GB free; checkpoints and export need "
            f"{needed / 1e9:.1f} GB: free some, choose another folder, or compare fewer methods"
        )
