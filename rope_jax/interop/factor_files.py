"""Scale vectors in files: a JSON list, a run's `scale.json`, or a LongRoPE CSV with a row per layer."""

import csv
from pathlib import Path
from typing import Any

from rope_jax.errors import InputError
from rope_jax.files import Fields, parse_json, read_text
from rope_jax.rope.methods.explicit import Explicit

# Bytes of a file of factors: a thousand layers of a thousand pairs.
_LARGEST = 32 << 20


def read_factors(path: str | Path) -> Explicit:
    """Reads the factors in a file, for the whole model or per layer.

    A `.json` file holds a list of numbers, one per pair, or a list of such lists, one per layer, relative to the
    model's own frequencies. An object is a whole vector, as a run writes what it solved: `factors`, the
    `attention_factor`, and the rotary `base` that they are of (absent: the model's). A `.csv` file holds a row per
    layer, as LongRoPE publishes its searched factors (arXiv 2402.13753); equal rows become one vector, which any engine
    can serve. Shapes and signs are checked where the model's head dimension is known.

    Raises:
        InputError: naming the file, if it cannot be read or holds no list of numbers.
    """
    path = Path(path)
    if not path.name:
        raise InputError("`path` is empty: name a JSON or CSV file of factors")
    text = read_text(path, _LARGEST)
    return _from_csv(path, text) if path.suffix.lower() == ".csv" else factors_of(path, parse_json(path, text))


def factors_of(place: str | Path, value: Any) -> Explicit:
    """The factors that a JSON value holds; messages name `place`."""
    if not isinstance(value, dict):
        return Explicit(_rows(place, value))
    fields = Fields(Path(place), value)
    rows, by_layer = _rows(place, value.get("factors")), _numbers(value.get("attention_factor"))
    attention_factor = tuple(value["attention_factor"]) if by_layer else fields.number("attention_factor", 1.0)
    base = fields.number("base") if "base" in value else 0.0
    return Explicit(rows, attention_factor, whole=True, base=base)


def _from_csv(path: Path, text: str) -> Explicit:
    try:
        rows = [[float(cell) for cell in row if cell.strip()] for row in csv.reader(text.splitlines())]
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a CSV of numbers ({error})") from None
    factors = _rows(path, [row for row in rows if row])
    return Explicit(factors[0] if len(set(factors)) == 1 else factors)


def _rows(place: str | Path, value: Any) -> tuple:
    rows = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    for row in rows:
        if not _numbers(row):
            raise InputError(
                f"{place} must hold a list of numbers, one per frequency pair, or a list of such lists, one per layer"
            )
    return tuple(tuple(row) for row in rows) if rows is value else tuple(value)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(number) in (int, float) for number in value)
