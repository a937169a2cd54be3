"""Text and JSON files: written whole or not at all; read, however made, with errors that name the path."""

import contextlib
import dataclasses
import errno
import gzip
import hashlib
import itertools
import json
import os
import re
import stat
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from rope_jax.errors import InputError

# Bytes of a file that is read whole, and of one that describes a model. A larger file, or a decompression bomb, must
# end in a message and not in an exhausted machine. Benchmarks' files and vocabularies have 50 MB at most.
LARGEST = 128 << 20
LARGEST_CONFIG = 4 << 20
# Of a line of JSON lines: a prompt of a million tokens takes a few MiB, and parsed JSON up to 70 times its text.
LONGEST_LINE = 1 << 24

# Numbers of the `OSError` of a full disk, and of a user's full share of it.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

# Values of JSON inside one another. Python itself fails at about a thousand, wherever it meets them.
DEEPEST = 100

# Half of a character beyond the basic plane. Alone it is no text and can be written to no file.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file and its folder, atomically: an interruption leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # part of a file, on a full disk
        raise


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def check_inside(folder: Path, file: Path) -> None:
    """Checks that a file may be copied as one of a folder's: that it is no link to elsewhere.

    Of the Hugging Face Hub's cache, the files of ``snapshots/COMMIT`` are links to ``blobs`` beside ``snapshots``.
    """
    home, real = folder.resolve(), file.resolve()
    blobs = home.parents[1] / "blobs" if home.parent.name == "snapshots" else None
    if not real.is_relative_to(home) and real.parent != blobs:
        raise InputError(f"{file} is a link to {real}, outside of its folder: put the file in its place, or remove it")


def read_text(path: Path, most: int = LARGEST) -> str:
    """Reads a UTF-8 file of at most `most` bytes, plain or gzip (``.gz``), without its byte order mark."""
    return _decoded(str(path), read_bytes(path, most))


def read_bytes(path: Path, most: int = LARGEST) -> bytes:
    """Reads a regular file of at most `most` bytes, plain or gzip (``.gz``)."""
    with _opened(path) as file:
        # A compressed file shows how much it holds only as it is read.
        if os.path.getsize(path) > most or len(data := file.read(most + 1)) > most:
            raise InputError(f"{path} holds more than {most >> 20} MiB: give a smaller file")
        return data


def read_json(path: Path) -> Any:
    """Reads a JSON file, plain or gzip."""
    return parse_json(path, read_text(path))


def read_json_object(path: Path, most: int = LARGEST) -> dict[str, Any]:
    """Reads a JSON object whose keys are unique, at every depth, from a file of at most `most` bytes."""
    return parse_json_object(path, read_text(path, most))


def parse_json_object(path: Path, text: str) -> dict[str, Any]:
    """Parses a JSON object whose keys are unique, at every depth; messages name `path`."""
    value = parse_json(path, text, object_pairs_hook=lambda pairs: _unique(path, pairs))
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__}, not an object: download it again")
    return value


def read_json_lines(path: Path, longest: int = LONGEST_LINE) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads one JSON object per line, unless it is blank; yields its place ``path:line``, for messages, and it.

    Lines are read one by one, plain or gzip, of at most `longest` bytes each.
    """
    with _opened(path) as file:
        for number in itertools.count(1):
            place, data = f"{path}:{number}", file.readline(longest + 1)
            if not data:
                return
            if len(data) > longest:
                raise InputError(f"{place} has more than {longest >> 20} MiB: give shorter lines")
            line = _decoded(place, data, "utf-8-sig" if number == 1 else "utf-8").strip()
            if not line:
                continue
            value = parse_json(place, line) if line.startswith("{") else None
            if not isinstance(value, dict):
                raise InputError(f"{place} is not a JSON object")
            yield place, value


def _decoded(place: str, data: bytes, encoding: str = "utf-8-sig") -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place} is not UTF-8 text at byte {error.start}: download it again, or convert it (iconv -t utf-8)"
        ) from None


def check_regular(path: Path, most: int | None = None) -> None:
    """Checks that an existing path is of a regular file, of at most `most` bytes; a pipe would never end."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is not a regular file: give a file")
    if most is not None and found.st_size > most:
        raise InputError(f"{path} holds more than {most >> 20} MiB: give a smaller file")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file to read, plain or gzip."""
    try:
        check_regular(path)
        with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
            yield cast(BinaryIO, file)
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}): repair it or download it again") from error


def set_aside(path: Path, before: object, of: Mapping[str, str]) -> str:
    """Renames a file that was made `before` of other things, so that it is made anew; gives a sentence that says so.

    Both are digests of what it is made of, by name.
    """
    known = before if isinstance(before, dict) else {}
    other = [name for name in of if known.get(name) != of[name]] or ["protocol"]
    names = (path.with_name(f"{path.stem}.old{i}{path.suffix}") for i in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    path.replace(aside)
    return f"{path} is of another {', '.join(other)}: measured anew; the old file is now {aside.name}"


def read_record(path: Path) -> Any:
    """Reads what `write_json` wrote; None if the file does not exist."""
    return read_json(path) if path.exists() else None


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON-able object with a `checksum` of its content."""
    content = json.loads(json.dumps(value))
    return {**content, "checksum": _checksum(content)}


def unsealed(value: Any) -> dict[str, Any]:
    """The content of what `sealed` gave; ValueError for anything else, even one flipped bit."""
    if not isinstance(value, dict) or "checksum" not in value:
        raise ValueError("it has no checksum")
    content = {key: item for key, item in value.items() if key != "checksum"}
    if value["checksum"] != _checksum(content):
        raise ValueError("its content differs from what was written")
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def shown(value: Any) -> str:
    """A value as JSON, cut where it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 120 else text[:117] + "..."


@dataclasses.dataclass(frozen=True)
class Fields:
    """A JSON object, or one inside it: `prefix` is its path in the file, such as ``"rope_scaling."``.

    Every method takes a key. `default` is the value of a key that is absent or null; None makes the key mandatory.
    Errors name file, key, value and fix.
    """

    path: Path
    values: Mapping[str, Any]
    prefix: str = ""

    def error(self, key: str, fix: str) -> InputError:
        return InputError(f"{self.path}: {self.prefix}{key} is {shown(self.values.get(key))}: {fix}")

    def integer(self, key: str, default: int | None = None, most: int = 2**31 - 1) -> int:
        """A positive integer of at most `most`."""
        wanted = "a positive integer" + (f" of at most {most:,}" if self._beyond(key, most) else "")
        return self._read(key, default, lambda value: type(value) is int and 0 < value <= most, wanted)

    def number(self, key: str, default: float | None = None) -> float:
        """A positive finite number."""

        def accepts(value: Any) -> bool:
            return type(value) in (int, float) and 0 < value <= sys.float_info.max

        return float(self._read(key, default, accepts, "a positive finite number"))

    def boolean(self, key: str, default: bool | None = None) -> bool:
        return self._read(key, default, lambda value: isinstance(value, bool), "true or false")

    def _beyond(self, key: str, most: int) -> bool:
        value = self.values.get(key)
        return type(value) is int and value > most

    def _read(self, key: str, default: Any, accepts: Callable[[Any], bool], wanted: str) -> Any:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not accepts(value):
            raise self.error(key, f"give {wanted}")
        return value


def parse_json(place: Path | str, text: str, **options: Any) -> Any:
    """Parses JSON; messages name `place`, and `options` are those of `json.loads`."""
    try:
        value = json.loads(text, **options)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # an integer of too many digits is a ValueError
        raise InputError(f"{place} is not valid JSON ({error}): download it again") from None
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return value
    raise InputError(f"{place} holds values more than {DEEPEST} deep inside one another: download it again")


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise InputError(f"{path} has the key {repeated!r} twice: remove one")
    return value
