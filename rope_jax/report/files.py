"""Files that appear complete or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically: an interruption leaves the old file or the new one.

    Args:
        path: file to write; its folder is created.
        text: content, written as UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, value) -> None:
    """Writes JSON atomically.

    Args:
        path: file to write; its folder is created.
        value: JSON-able value.
    """
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path):
    """Reads what `write_json` wrote, None if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
