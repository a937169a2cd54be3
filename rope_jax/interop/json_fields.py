"""JSON files that nobody vouches for, and their fields."""

from __future__ import annotations

import json
import math
from pathlib import Path

from rope_jax.errors import InputError


def read_json(path: Path) -> dict:
    """A JSON object from a file that nobody vouches for.

    Args:
        path: file.

    Returns:
        The object.

    Raises:
        InputError: if the file is absent, is not a JSON object, or names a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a complete model folder") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: download or export it again") from None
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _object(path, pairs))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): download or export it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__}, not an object: download it again")
    return value


def shown(value) -> str:
    """A value as JSON, cut where it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 120 else text[:117] + "..."


def unusable(path, key, value, fix) -> InputError:
    """An error that names file, key, value and fix."""
    return InputError(f"{path}: {key} is {shown(value)}: {fix}")


def integer(path, raw, key, default=None) -> int:
    """A positive integer.

    Args:
        path: file, for the message.
        raw: JSON object.
        key: key to look up.
        default: where the key is absent or null; None makes it mandatory.

    Returns:
        The number.

    Raises:
        InputError: naming file, key and value.
    """
    value = raw.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise unusable(path, key, value, "give a positive integer")
    return value


def number(path, raw, key, default=None, name=None) -> float:
    """A positive finite number; arguments and errors as `integer`, `name` standing for the key in messages."""
    value = raw.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise unusable(path, name or key, value, "give a positive finite number")
    return float(value)


def boolean(path, raw, key, default) -> bool:
    """True or false; arguments and errors as `integer`."""
    value = raw.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise unusable(path, key, value, "give true or false")
    return value


def _object(path, pairs):
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"{path} has the key {twice!r} twice: remove one")
    return value
