"""Finding the data files of benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def named_path(owner: Any, field: str, what: str, command: str) -> Path:
    """The path that an attribute names.

    Args:
        owner: has the attribute.
        field: name of the attribute.
        what: what it names.
        command: shell command that gets it.

    Returns:
        The path.

    Raises:
        InputError: if the attribute is empty.
    """
    if not getattr(owner, field):
        raise InputError(f"`{field}` is empty: name {what}. Get it with\n  {command}", field=field)
    return Path(getattr(owner, field)).expanduser()


def find_file(folder: Path, name: str) -> Path | None:
    """A file of a name, or with `.gz` after it, in a folder or its sub-folder `data`; None if there is none."""
    paths = (parent / (name + ending) for parent in (folder, folder / "data") for ending in ("", ".gz"))
    return next((path for path in paths if path.is_file()), None)
