"""Reading the data files of benchmarks, which are untrusted: JSON is parsed, nothing is executed."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rope_jax.errors import InputError

# A decompression bomb must end in a message, not in an exhausted machine.
FILE_LIMIT = 1 << 30


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


def read_text(path: Path) -> str:
    """Reads a UTF-8 file, unpacking it if its name ends in `.gz`; InputError if that cannot be done."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
            data = file.read(FILE_LIMIT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path} ({error}): repair it or download it again") from error
    if len(data) > FILE_LIMIT:
        raise InputError(f"{path} holds more than {FILE_LIMIT >> 20} MiB, which no file of these benchmarks does")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}: download it again") from None


def read_json(path: Path) -> Any:
    """Reads a JSON file, plain or gzip.

    Args:
        path: the file.

    Returns:
        Its value.

    Raises:
        InputError: if it cannot be read or is not JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}): download it again") from None


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads a file with a JSON object on each line, plain or gzip; blank lines are left out.

    Args:
        path: the file.

    Yields:
        Where the object stands, as `path:line` for messages, and the object.

    Raises:
        InputError: if the file cannot be read or a line is not a JSON object.
    """
    # Not str.splitlines: the texts may hold separators such as U+2028, which end no line of JSON.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is not JSON ({error}): each line must be a JSON object") from None
        if not isinstance(value, dict):
            raise InputError(f"{where} is not a JSON object")
        yield where, value
