"""From a config to a method that needs no weights."""

import dataclasses
import os
import runpy
from functools import cache
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from rope_jax.cli.names import reading, value
from rope_jax.commands.fields import METHOD_FIELDS
from rope_jax.errors import InputError
from rope_jax.files import parse_json
from rope_jax.gguf_reader import is_gguf
from rope_jax.interop.factor_files import factors_of, read_factors
from rope_jax.interop.model_folder import read_source
from rope_jax.model.usage_file import Usage, read_usage
from rope_jax.rope.checks import check_attention_factor
from rope_jax.rope.distances import DistanceHistogram
from rope_jax.rope.methods.adjusted import Adjusted, parse_adjusted
from rope_jax.rope.methods.explicit import Explicit
from rope_jax.rope.methods.method import Method
from rope_jax.rope.methods.registered import REGISTERED, named


def solved_method(config: ConfigDict, name: str) -> Method:
    """A method that needs no weights, with its parameters, adjusted as its name or the config says."""
    said = parse_adjusted(name)
    name = said.method
    # Other parameters of a registered method are set where it is defined.
    parameters = {field.name for field in dataclasses.fields(named(name)) if name not in REGISTERED}
    values = {p: value(config, field) for p, field in METHOD_FIELDS.items() if p in parameters}
    if "distances" in values:
        values["distances"] = distances(config)
    if "energy" in values:
        values["energy"] = energy(config)
    values |= said.parameters
    found = _explicit(config.rope.factors) if name == "explicit" else named(name)(**values)
    factor = said.attention_factor or config.rope.attention_factor or None
    adjustments = factor, said.taper or config.rope.taper, tuple(config.rope.layers)
    return Adjusted(found, *adjustments) if any(adjustments) else found


@cache
def define_methods(path: str) -> None:
    """Runs the Python file of a user that names methods with `rope_jax.method`; once, as a name is given once.

    A command calls this with what was typed, never with what a folder says.
    """
    if Path(path).suffix != ".py" or not Path(path).is_file():
        raise InputError(f"`methods` is {path!r}: name a Python file")
    try:
        runpy.run_path(path)
    except InputError as error:
        said = str(error).replace("`", "")  # names arguments of the file's calls
        raise InputError(f"`methods`: {path}: {said}") from error
    except Exception as error:
        raise InputError(f"`methods`: {path}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def energy(config: ConfigDict) -> tuple | None:
    """The weight of each pair, by layer if the config says so, if a file of energies is named."""
    usage = _measured(config, "solve.energy")
    if config.solve.by_layer and not usage:
        raise InputError("`solve.by_layer` ranks pairs by energies, and `solve.energy` is empty: name a file of them")
    return usage and (usage.layer_weights() if config.solve.by_layer else usage.pair_weights())


def distances(config: ConfigDict) -> DistanceHistogram | None:
    """How much the model attends to distances, if a file of them is named."""
    usage = _measured(config, "solve.distances")
    return usage and usage.distances()


def _measured(config: ConfigDict, field: str) -> Usage | None:
    """What the file that a field names says of the model, if it names one."""
    path = value(config, field)
    if not path:
        return None
    with reading(field):
        return read_usage(Path(path).expanduser())


def _explicit(given: str) -> Explicit:
    """Factors as they are typed, from a file, or of a model that already scales."""
    if not given:
        return Explicit()
    with reading("rope.factors"):
        if given.lstrip().startswith("["):
            return factors_of("config.rope.factors", parse_json("config.rope.factors", given))
        if not os.path.isdir(given) and not is_gguf(Path(given)):
            found = read_factors(given)
            try:
                for factor in np.ravel(found.attention_factor):
                    check_attention_factor(factor)
            except InputError as error:  # at fault is the file, and not `rope.attention_factor`
                raise InputError(str(error.renamed({"attention_factor": f"{given}: attention_factor"}))) from None
            return found
        known = read_source(Path(given))
    factors = np.asarray(known.rope.factors, float).tolist()
    return Explicit(tuple(factors), float(known.rope.attention_factor), whole=True, base=known.config.rope_base)
