"""Fields of an untrusted JSON file."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rope_jax.errors import InputError


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
        """An error to raise."""
        return InputError(f"{self.path}: {self.prefix}{key} is {shown(self.values.get(key))}: {fix}")

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer."""
        return self._read(key, default, lambda value: type(value) is int and value > 0, "a positive integer")

    def number(self, key: str, default: float | None = None) -> float:
        """A positive finite number."""

        def accepts(value: Any) -> bool:
            return type(value) in (int, float) and 0 < value <= sys.float_info.max

        return float(self._read(key, default, accepts, "a positive finite number"))

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        return self._read(key, default, lambda value: isinstance(value, bool), "true or false")

    def _read(self, key: str, default: Any, accepts: Callable[[Any], bool], wanted: str) -> Any:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not accepts(value):
            raise self.error(key, f"give {wanted}")
        return value
