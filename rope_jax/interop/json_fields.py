"""Fields of an untrusted JSON file."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
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
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(key, "give a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise self.error(key, "give a positive finite number")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "give true or false")
        return value
