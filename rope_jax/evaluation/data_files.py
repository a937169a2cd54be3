"""Finding the data files of benchmarks."""

from __future__ import annotations

from pathlib import Path

from rope_jax.errors import InputError


def missing_file(path: Path, what: str, command: str) -> InputError:
    """The error for a data file that is not there.

    Args:
        path: where it was looked for.
        what: what the file is and where it comes from.
        command: shell command that gets it.

    Returns:
        The error, to be raised.
    """
    return InputError(f"{path} is missing: {what}. Get it with\n  {command}")


def find_file(folder: Path, name: str) -> Path | None:
    """A file of a name, or with `.gz` after it, in a folder or its sub-folder `data`; None if there is none."""
    paths = (parent / (name + ending) for parent in (folder, folder / "data") for ending in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)
