"""The Python standard library as a corpus that needs no download."""

from __future__ import annotations

import os
import sysconfig
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

from rope_jax.data.text_files import Document
from rope_jax.errors import InputError

# Tests are repetitive. The others hold installed packages and caches.
_SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


def list_sources() -> tuple[Path, tuple[Path, ...]]:
    """Finds the library's Python sources, documentation included (`pydoc_data/topics.py`).

    Returns:
        The library's folder, and the files below it sorted by relative path.

    Raises:
        InputError: if this Python comes without sources.
    """
    root = Path(sysconfig.get_path("stdlib")).resolve()
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        for name in files:
            path = Path(folder) / name
            # `_sysconfigdata*` lists the build settings of this machine.
            if name.endswith(".py") and not name.startswith("_sysconfigdata") and not path.is_symlink():
                found.append(path)
    if not found:
        raise InputError(
            f"`name` is 'python_stdlib', but this Python has no sources at {root}; "
            "use an interpreter that ships them, or a text_folder",
            field="name",
        )
    return root, tuple(sorted(found, key=lambda path: path.relative_to(root).as_posix()))


def read_sources(root: Path, paths: Sequence[Path]) -> Iterator[Document]:
    """Reads sources in the encoding that each declares. The few that do not decode are left out.

    Args:
        root: folder that document ids are relative to.
        paths: files below it.

    Yields:
        One document per file that holds more than whitespace.
    """
    for path in paths:
        try:
            with tokenize.open(path) as file:
                text = file.read()
        except (SyntaxError, UnicodeDecodeError):
            continue
        if text.strip():
            yield Document(path.relative_to(root).as_posix(), text)
