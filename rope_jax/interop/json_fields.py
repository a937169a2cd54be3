"""Fields of JSON files that nobody vouches for."""

from __future__ import annotations

import json
import math

from rope_jax.errors import InputError


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
