"""Documents in a folder of text and JSON-lines files. Nothing in an untrusted file is executed."""

import dataclasses
import gzip
import json
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path

from rope_jax.errors import InputError

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
    """Reads documents one by one. A `.txt` file is a document; so is each line of a `.jsonl` file.

    Args:
        root: folder that document ids are relative to.
        paths: files below it.

    Yields:
        The documents that hold more than whitespace.

    Raises:
        InputError: if a file cannot be read, is not UTF-8, or has a line that is not an object with `text`.
    """
    root = root.resolve()
    for path in paths:
        name = os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "replace")
        compressed = path.name.lower().endswith(".gz")
        lines = path.name.lower().removesuffix(".gz").endswith(".jsonl")
        try:
            with gzip.open(path) if compressed else open(path, "rb") as file:
                for document in _read_lines(file, path, name) if lines else _read_whole(file, path, name):
                    if document.text.strip():
                        yield document
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"cannot read {path} ({error}); repair or remove it") from error


def _read_whole(file: BufferedIOBase, path: Path, name: str) -> Iterator[Document]:
    data = file.read(DOCUMENT_LIMIT + 1)
    _check_size(data, str(path))
    # Some editors mark UTF-8 with a byte order mark, which is no part of the text.
    yield Document(name, _decode(data, path, 0).removeprefix("\ufeff"))


def _read_lines(file: BufferedIOBase, path: Path, name: str) -> Iterator[Document]:
    offset, number = 0, 0
    while data := file.readline(DOCUMENT_LIMIT + 1):
        number += 1
        where = f"{path}:{number}"
        _check_size(data, where)
        line = _decode(data, path, offset)
        offset += len(data)
        if number == 1:
            line = line.removeprefix("\ufeff")
        if line.strip():
            yield Document(f"{name}:{number}", _text_of(line, where))


def _text_of(line: str, where: str) -> str:
    fix = 'each line must be a JSON object with a string under "text"'
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}); {fix}") from None
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise InputError(f'{where} has no "text"; {fix}')
    try:
        value["text"].encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f'{where} has an unpaired surrogate at character {error.start} of "text"; '
            "write the character itself or a pair of \\u escapes"
        ) from None
    return value["text"]


def _decode(data: bytes, path: Path, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 at byte {offset + error.start}; "
            "convert it (for example `iconv -f latin1 -t utf-8`) or remove it"
        ) from None


def _check_size(data: bytes, where: str) -> None:
    if len(data) > DOCUMENT_LIMIT:
        raise InputError(f"{where} is a document of more than {DOCUMENT_LIMIT >> 20} MiB; split it")


def _link_error(path: Path) -> InputError:
    return InputError(
        f"{path} is a symbolic link out of the data folder or to a folder, which is not "
        "followed; put a copy in its place or remove it"
    )


def _raise_unreadable(error: OSError) -> None:
    raise InputError(f"cannot read {error.filename} ({error.strerror})") from error
