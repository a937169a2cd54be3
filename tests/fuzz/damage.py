"""What happens to valid files: flipped bits, cuts, values of other kinds, and what is no file at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

Change = Callable[[Path], object]

# JSON texts to put instead of any value; some are not valid JSON.
VALUES = {
    "null": "null",
    "true": "true",
    "zero": "0",
    "minus one": "-1",
    "minus zero": "-0.0",
    "a fraction": "1.5",
    "2^31": "2147483648",
    "2^63": "9223372036854775808",
    "10^11": "100000000000",
    "5000 digits": "1" + "0" * 5000,
    "1e300": "1e300",
    "a subnormal": "1e-320",
    "1e400": "1e400",
    "NaN": "NaN",
    "minus infinity": "-Infinity",
    "an empty string": '""',
    "a number as a string": '"2"',
    "a lone surrogate": '"\\ud800"',
    "a NUL": '"a\\u0000b"',
    "a parent folder": '"../../outside/secret"',
    "300 characters": json.dumps("x" * 300),
    "a megabyte": json.dumps("x" * (1 << 20)),
    "an empty list": "[]",
    "an empty object": "{}",
    "a list of lists": "[[1], [2, 3]]",
    "a long list": "[" + "0," * 200_000 + "0]",
    "60 levels": "[" * 60 + "]" * 60,
    "5000 levels": "[" * 5000 + "]" * 5000,
    "5000 objects": '{"a":' * 5000 + "1" + "}" * 5000,
    "a key twice": '{"a": 1, "a": 2}',
}

_MARK = "\0 the place \0"


def with_value(value: Any, keys: tuple, text: str) -> str:
    """JSON of a value in which a JSON text stands at the place that `keys` lead to."""
    return json.dumps(_replaced(value, keys)).replace(json.dumps(_MARK), text)


def _replaced(value: Any, keys: tuple) -> Any:
    if not keys:
        return _MARK
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[keys[0]] = _replaced(copy[keys[0]] if keys[1:] else None, keys[1:])
    return copy


def places(value: Any, keys: tuple = ()) -> Iterator[tuple]:
    """The keys that lead to every value inside another."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*keys, key)
        yield from places(inner, (*keys, key))


def damaged_json(random: Random, text: str) -> tuple[str, str]:
    """One value of a JSON text replaced, and what was done."""
    value = json.loads(text)
    # Of long lists, such as vocabularies, as often as of all else.
    keys = random.choice([found for found in places(value)][:200] or [()])
    name = random.choice(list(VALUES))
    return f"{'.'.join(map(str, keys))[:60]} is {name}", with_value(value, keys, VALUES[name])


def damaged_bytes(random: Random, data: bytes) -> tuple[str, bytes]:
    """Bits flipped, bytes overwritten, cut or repeated, half of the time at the beginning, and what was done."""
    end = len(data) if random.random() < 0.5 else min(len(data), 400)
    place = random.randrange(max(end, 1))
    size = random.choice((1, 4, 8, 50))
    rest = data[place + size :]
    match random.randrange(6):
        case 0:
            changed = bytearray(data)
            for _ in range(random.choice((1, 3, 30)) if data else 0):
                changed[random.randrange(max(end, 1))] ^= 1 << random.randrange(8)
            return f"bits flipped in the first {end} bytes", bytes(changed)
        case 1:
            return f"cut at {place}", data[:place]
        case 2:
            value = random.choice((b"\0", b"\xff", b"\x7f", b"["))
            return f"{size} bytes {value!r} at {place}", data[:place] + value * size + rest
        case 3:
            return f"{size} random bytes at {place}", data[:place] + random.randbytes(size) + rest
        case 4:
            return f"{size} bytes at {place} taken out", data[:place] + rest
        case _:
            return f"{size} bytes at {place} put in twice", data[: place + size] + data[place:]


def no_file(name: str) -> dict[str, Change]:
    """What else a path may be: nothing that can be read as that file."""

    def instead(make: Change) -> Change:
        def change(folder: Path) -> None:
            path = folder / name
            path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
            make(path)

        return change

    return {
        f"{name} is {what}": instead(make)
        for what, make in {
            "a pipe": os.mkfifo,
            "a folder": os.mkdir,
            "empty": Path.touch,
            "a link to itself": lambda path: path.symlink_to(path.name),
            "a link to a device": lambda path: path.symlink_to("/dev/zero"),
            "a link to nothing": lambda path: path.symlink_to("nowhere"),
            "a link to the folder above": lambda path: path.symlink_to(".."),
            "5 GB of nothing": _sparse,
        }.items()
    }


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(5 << 30)
