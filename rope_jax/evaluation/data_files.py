"""The data files of benchmarks: found, or named with the command that gets them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rope_jax.data.text_files import list_text_files, read_documents
from rope_jax.errors import InputError


def missing_file(path: Path, what: str, command: str) -> InputError:
    """The error for a data file that is not there, with the shell command that gets it."""
    return InputError(f"{path} is missing: {what}. Get it with\n  {command}")


def read_texts(folder: Path, what: str, command: str) -> Iterator[str]:
    """The texts of a folder (`.txt`, or `.jsonl` with `text`, also gzip), in the order of their names."""
    if not os.path.isdir(folder):
        raise missing_file(folder, what, command)
    files = list_text_files(folder)
    if not files:
        raise InputError(f"{folder} has no .txt or .jsonl file: name a folder with text in it")
    return (document.text for document in read_documents(folder, files))


def named_path(owner: Any, field: str, what: str, command: str) -> Path:
    """The path that an attribute names; InputError with the shell command that gets it if the attribute is empty."""
    if not getattr(owner, field):
        raise InputError(f"`{field}` is empty: name {what}. Get it with\n  {command}")
    return Path(getattr(owner, field)).expanduser()


def find_file(folder: Path, name: str) -> Path | None:
    """A file of a name, or with `.gz` after it, in a folder or its sub-folder `data`; None if there is none."""
    paths = (parent / (name + ending) for parent in (folder, folder / "data") for ending in ("", ".gz"))
    return next((path for path in paths if os.path.isfile(path)), None)
