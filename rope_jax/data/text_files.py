"""Documents in a folder of text and JSON-lines files. Nothing in an untrusted file is executed."""

import dataclasses
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from rope_jax.errors import InputError
from rope_jax.files import read_json_lines, read_text

ENDINGS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")

# Bounds the memory that a corrupt or hostile file can take, such as a decompression bomb or a gigabyte without a line
# break. The longest books have a few megabytes.
DOCUMENT_LIMIT = 1 << 27


@dataclasses.dataclass(frozen=True)
class Document:
    """A text, unchanged, and its id: the path within the corpus, with `:line` for a line of a JSON-lines file."""

    id: str
    text: str


def list_text_files(root: Path) -> tuple[Path, ...]:
    """The files below a folder that end in one of `ENDINGS`, by relative path. Hidden ones are left out.

    An InputError tells of a folder that cannot be read and of a symbolic link that leads out of it.
    """
    root = root.resolve()
    found = []
    for folder, folders, files in os.walk(root, onerror=_raise_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if (Path(folder) / name).is_symlink():
                raise _link_error(Path(folder) / name)
        for name in files:
            if name.startswith(".") or not name.lower().endswith(ENDINGS):
                continue
            path = Path(folder) / name
            if path.is_symlink() and not (path.exists() and path.resolve().is_relative_to(root)):
                raise _link_error(path)
            if not stat.S_ISREG(path.stat().st_mode):
                raise InputError(f"{path} is not a regular file; remove it")
            found.append(path)
    return tuple(sorted(found, key=lambda path: path.relative_to(root).as_posix()))


def read_documents(root: Path, paths: Sequence[Path]) -> Iterator[Document]:
    """Reads documents in files below `root` one by one, those that hold more than whitespace.

    A `.txt` file is a document; so is each line of a `.jsonl` file.
    """
    root = root.resolve()
    for path in paths:
        name = os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "replace")
        if not path.name.lower().removesuffix(".gz").endswith(".jsonl"):
            documents = [Document(name, read_text(path, DOCUMENT_LIMIT))]
        else:
            documents = _lines(path, name)
        yield from (document for document in documents if document.text.strip())


def _lines(path: Path, name: str) -> Iterator[Document]:
    for place, value in read_json_lines(path, DOCUMENT_LIMIT):
        if not isinstance(value.get("text"), str):
            raise InputError(f'{place} has no "text"; each line must be a JSON object with a string under "text"')
        yield Document(name + place.removeprefix(str(path)), value["text"])


def _link_error(path: Path) -> InputError:
    return InputError(
        f"{path} is a symbolic link out of the data folder or to a folder, which is not "
        "followed; put a copy in its place or remove it"
    )


def _raise_unreadable(error: OSError) -> None:
    raise InputError(f"cannot read {error.filename} ({error.strerror})") from error
