"""The Python standard library as a corpus that needs no download."""

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
    """The library's folder, and its Python sources by relative path, with documentation (`pydoc_data/topics.py`)."""
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
            "use an interpreter that ships them, or a text_folder"
        )
    return root, tuple(sorted(found, key=lambda path: path.relative_to(root).as_posix()))


def read_sources(root: Path, paths: Sequence[Path]) -> Iterator[Document]:
    """Reads files below `root` in the encoding that each declares. Undecodable and empty ones are left out."""
    for path in paths:
        try:
            with tokenize.open(path) as file:
                text = file.read()
        except (SyntaxError, UnicodeDecodeError):
            continue
        if text.strip():
            yield Document(path.relative_to(root).as_posix(), text)
