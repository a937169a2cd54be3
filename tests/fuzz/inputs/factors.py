"""Files of factors, and of measured usage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from configs.defaults import get_config
from rope_jax.cli.methods import solved_method
from rope_jax.model.usage_file import read_usage
from rope_jax.rope.embedding import identity
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from tests.fuzz.damage import VALUES, Change, with_value
from tests.fuzz.inputs.kinds import Kind
from tests.fuzz.inputs.models import content

FACTORS, ROWS = "factors.json", "factors.csv"


def write_factors(folder: Path) -> None:
    (folder / FACTORS).write_text(json.dumps([1.0, 1.5, 2, 2.5]))
    (folder / ROWS).write_text("1,1.5,2,2.5\n1,1.5,2,2.5\n")
    whole = {"factors": [1.0, 1.5, 2, 2.5], "attention_factor": 1.1, "base": 10000.0, "of": {"model": "a"}}
    (folder / "scale.json").write_text(json.dumps(whole))


def use_factors(name: str) -> Change:
    def read(folder: Path) -> None:
        config = get_config()
        config.rope.factors = str(folder / name)
        scale = solved_method(config, "explicit").scale(Geometry(10000.0, 8, identity(8), layers=2), Measure(64, 128))
        assert np.isfinite(np.asarray(scale.factors)).all() and (np.asarray(scale.factors) > 0).all()
        assert 0 < float(scale.attention_factor) < 1e6

    return read


_LIST, _WHOLE = [1.0, 1.5, 2, 2.5], {"factors": [1.0, 1.5, 2, 2.5], "attention_factor": 1.1}
_NO_FACTOR = [
    "null",
    "true",
    "zero",
    "minus one",
    "minus zero",
    "5000 digits",
    "1e300",
    "1e400",
    "NaN",
    "minus infinity",
    "an empty string",
    "a number as a string",
    "a lone surrogate",
    "an empty list",
    "an empty object",
    "a list of lists",
    "a long list",
    "60 levels",
    "5000 levels",
    "5000 objects",
]
FACTOR_LISTS = Kind(
    write_factors,
    use_factors(FACTORS),
    (FACTORS,),
    refused={
        **{f"a factor is {name}": content(FACTORS, with_value(_LIST, (1,), VALUES[name])) for name in _NO_FACTOR},
        **{f"all is {name}": content(FACTORS, VALUES[name]) for name in _NO_FACTOR},
        "three": content(FACTORS, "[1, 1, 1]"),
        "33 MB": content(FACTORS, b"[" + b"1," * (17 << 20) + b"1]"),
        "rows of other lengths": content(FACTORS, "[[1, 1, 1, 1], [1, 1, 1]]"),
        "three rows": content(FACTORS, json.dumps([_LIST] * 3)),
    },
)
FACTOR_OBJECTS = Kind(
    write_factors,
    use_factors("scale.json"),
    ("scale.json",),
    refused={
        f"{key} is {name}": content("scale.json", with_value(_WHOLE | {"base": 5e3}, (key,), VALUES[name]))
        for key in ("factors", "attention_factor", "base")
        for name in _NO_FACTOR
        if (key, name) != ("attention_factor", "null")
    },
)
FACTOR_ROWS = Kind(
    write_factors,
    use_factors(ROWS),
    (ROWS,),
    refused={
        "a huge field": content(ROWS, "1" * 200_000 + ",1,1,1"),
        "a field of 30 MB": content(ROWS, '"' + "1" * (30 << 20)),
        "words": content(ROWS, "a,b,c,d"),
        "NaN": content(ROWS, "1,nan,1,1"),
        "infinity": content(ROWS, "1,inf,1,1"),
        "1e300": content(ROWS, "1,1e300,1,1"),
        "zero": content(ROWS, "1,0,1,1"),
        "a NUL": content(ROWS, b"1,\0,1,1"),
        "nothing": content(ROWS, "\n\n"),
        "rows of other lengths": content(ROWS, "1,1,1,1\n1,1,1\n"),
        "a million rows": content(ROWS, "1,1,1,1\n" * 1_000_000 + "1,1,1,2\n"),
        "Latin-1": content(ROWS, b"1,\xe9,1,1"),
        "underscores": content(ROWS, "1,x_1,1,1"),
    },
)

USAGE = {
    "energy": [[[1.0, 2.0]]],
    "distances": {"edges": [0, 1, 2], "attention": [[[1.0, 2.0]]]},
    "about": {"model": "a"},
}
USAGES = Kind(
    lambda folder: (folder / "usage.json").write_text(json.dumps(USAGE)),
    lambda folder: (lambda usage: (usage.pair_weights(), usage.distances()))(read_usage(folder / "usage.json")),
    ("usage.json",),
    refused={
        f"energy is {name}": content("usage.json", with_value(USAGE, ("energy", 0, 0), VALUES[name]))
        for name in ("null", "zero", "minus one", "NaN", "5000 digits", "1e400", "a number as a string", "5000 levels")
    },
)
