"""Scale vectors in files: a JSON list, or a LongRoPE CSV with a row per layer."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from rope_jax.errors import InputError


def read_factors(path: str | Path) -> tuple:
    """Factors from a file, for the method `explicit`: numbers, or a tuple of them per layer.

    A `.json` file holds a list of numbers, one per pair, or a list of such lists, one per layer; an object's
    `"factors"` are taken, which is how a run writes down what it solved. A `.csv` file holds a row per layer, as
    LongRoPE publishes its searched factors (arXiv 2402.13753); equal rows become one vector, which any engine can
    serve. Shapes and signs are checked where the model's head dimension is known.

    Raises:
        InputError: naming the file, if it cannot be read or holds no list of numbers.
    """
    path = Path(path)
    if not path.name:
        raise InputError("`path` is empty: name a JSON or CSV file of factors", field="path")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".csv":
            rows = [tuple(float(cell) for cell in row if cell.strip()) for row in csv.reader(text.splitlines())]
            factors = tuple(row for row in rows if row)
            factors = factors[0] if len(set(factors)) == 1 else factors
        else:
            value = json.loads(text)
            value = value["factors"] if isinstance(value, dict) else value
            factors = tuple(tuple(row) if isinstance(row, list) else row for row in value)
    except (OSError, KeyError, ValueError, TypeError) as error:
        kind = "a CSV of numbers" if path.suffix.lower() == ".csv" else "JSON"
        raise InputError(f"{path} cannot be read as {kind} ({error})") from error
    if not factors:
        raise InputError(
            f"{path} must hold a list of numbers, one per frequency pair, or a list of such lists, one per layer"
        )
    return factors
