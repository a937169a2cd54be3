"""Methods that a program defines beside those of the package."""

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar

from rope_jax.errors import InputError, nearest
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods import METHODS
from rope_jax.rope.methods.adjusted import parse_adjusted
from rope_jax.rope.methods.explicit import explicit
from rope_jax.rope.methods.method import ClosedForm, Method, parameter
from rope_jax.rope.relative import RelativeScale

# One table for the process, as METHODS is: configs, run folders and tables know a method by its name alone, and a file
# that defines one is run for this effect.
REGISTERED: dict[str, type[Method]] = {}

_Definition = TypeVar("_Definition", bound=Callable[..., Any])


def method(name: str) -> Callable[[_Definition], _Definition]:
    """Names a method of one's own, which `solve`, `Model.under` and the commands then take by this name.

    It decorates a function of a `Geometry` and a `Measure` that returns factors `[D/2]` relative to the model's own
    frequencies; what further arguments it has are the method's parameters and need defaults. Or it decorates a frozen
    dataclass derived from `Method`. What it decorates stays as it is.

    Args:
        name: letters, digits and underscores.

    Raises:
        InputError: if there is a method of this name, or the definition is of neither kind.
    """
    if not re.fullmatch(r"[A-Za-z]\w*", name) or parse_adjusted(name).method != name or name in ("own", "learned"):
        raise InputError(
            f"`name` is {name!r}: use letters, digits and underscores, neither 'own' nor 'learned', and no '_n3', "
            "'_t3' or '_w3' at the end, which adjusts a method"
        )
    if name in METHODS or name in REGISTERED:
        raise InputError(
            f"`name` is {name!r}, which is a method already: choose another, or start Python again to define it anew"
        )

    def register(definition: _Definition) -> _Definition:
        made: Any = definition
        REGISTERED[name] = made if isinstance(made, type) else _of_function(name, made)
        return definition

    return register


def named(name: str) -> type[Method]:
    """The method of a name, of the package or registered."""
    known = {**METHODS, **REGISTERED}
    if name not in known:
        raise InputError(f"`method` is {name!r}: {nearest(name, known)}use one of {', '.join(map(repr, known))}")
    return known[name]


def _of_function(name: str, function: Callable[..., Any]) -> type[Method]:
    """A method whose parameters are the function's further arguments."""
    _, _, *parameters = inspect.signature(function).parameters.values()
    for each in parameters:
        if each.default is each.empty:
            raise InputError(f"`{each.name}` of the method {name!r} has no default: give it one")

    def relative(self: Any, geometry: Geometry, measure: Measure) -> RelativeScale:
        factors = function(geometry, measure, **{each.name: getattr(self, each.name) for each in parameters})
        try:
            return explicit(factors, geometry.head_dim)
        except InputError as error:
            raise error.renamed({"factors": f"method {name}: factors"}) from None

    fields = [(each.name, Any, parameter(each.default, f"of {name}")) for each in parameters]
    return dataclasses.make_dataclass(
        name, fields, bases=(ClosedForm,), namespace={"title": name, "relative": relative}, frozen=True
    )
