"""Any method with another attention factor, with its factors smoothed over neighbouring pairs, or in some layers."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from rope_jax.errors import InputError
from rope_jax.rope.arrays import AnyArray
from rope_jax.rope.checks import check_attention_factor
from rope_jax.rope.embedding import ScaleVector
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods.by_parts import yarn_attention_factor
from rope_jax.rope.methods.explicit import Explicit, longrope_attention_factor
from rope_jax.rope.methods.method import Method, Solution

YARN, LONGROPE = "yarn", "longrope"


@dataclasses.dataclass(frozen=True)
class Adjusted(Method):
    """What `method` gives, adjusted.

    Attributes:
        method: the method.
        attention_factor: on cos and sin, instead of the method's own: a number, or "yarn" for `0.1 ln s + 1`, or
            "longrope" for `sqrt(1 + ln s / ln L)`; None keeps the method's own. It multiplies that of the model, unless
            the method replaces the model's scaling.
        taper: pairs on either side that a pair's factor is averaged with; 0 for none.
        layers: layers that are extended, from 0; the others keep the model's own scaling. Empty for all.
    """

    title = "adjusted"
    method: Method
    attention_factor: float | str | None = None
    taper: int = 0
    layers: tuple[int, ...] = ()

    def __post_init__(self):
        if self.attention_factor is not None:
            check_adjustment(self.attention_factor)
        if self.taper < 0:
            raise InputError(f"`taper` is {self.taper}: use a number of pairs, or 0")

    @property
    def layered(self) -> str:
        return "layers" if self.layers else self.method.layered

    def check(self, geometry: Geometry, measure: Measure) -> None:
        self.method.check(geometry, measure)
        pairs = geometry.head_dim // 2
        if self.taper >= pairs:
            raise InputError(f"`taper` is {self.taper}, and there are {pairs} pairs: use fewer")
        for layer in self.layers:
            if not 0 <= layer < (geometry.layers or 0):
                known = f"{geometry.layers} layers, from 0" if geometry.layers else "no known layers: name a model"
                raise InputError(f"`layers` has {layer}, and there are {known}")

    def __call__(self, geometry: Geometry, measure: Measure) -> Solution:
        self.check(geometry, measure)
        solution = self.method(geometry, measure)
        factors, attention_factor = solution.scale.factors, solution.scale.attention_factor
        if self.attention_factor is not None:
            replaces = isinstance(self.method, Explicit) and self.method.whole
            own = 1 if replaces else float(geometry.own.attention_factor)
            attention_factor = own * self._factor(measure)
        if self.taper:
            factors = geometry.own.factors * tapered(factors / geometry.own.factors, self.taper)
        scale = ScaleVector.create(factors, attention_factor)
        if self.layers:
            scale = in_layers(scale, geometry, self.layers)
        return Solution.measured(geometry, measure, scale, solution.selection)

    def _factor(self, measure: Measure) -> float:
        if self.attention_factor == YARN:
            return yarn_attention_factor(measure.extension)
        if self.attention_factor == LONGROPE:
            return longrope_attention_factor(measure.extension, measure.original)
        assert self.attention_factor is not None
        return float(self.attention_factor)


def in_layers(scale: ScaleVector, geometry: Geometry, layers: tuple[int, ...]) -> ScaleVector:
    """A scale vector in some layers, and the model's own scaling in the others: factors `[layers, D/2]`."""
    assert geometry.layers is not None
    extended = np.isin(np.arange(geometry.layers), layers)
    new, own = (vector.by_layer(geometry.layers, geometry.head_dim // 2) for vector in (scale, geometry.own))
    factors = jnp.where(extended[:, None], new.factors, own.factors)
    return ScaleVector.create(factors, jnp.where(extended, new.attention_factor, own.attention_factor))


def check_adjustment(attention_factor: float | str) -> None:
    """Checks what a config says of an attention factor: a number, or the name of a formula."""
    if attention_factor in (YARN, LONGROPE):
        return
    try:
        number = float(attention_factor)
    except (TypeError, ValueError):
        message = f"`attention_factor` is {attention_factor!r}: use a number, {YARN!r} or {LONGROPE!r}"
        raise InputError(message) from None
    check_attention_factor(number)


class AdjustedName(NamedTuple):
    """What a name such as 'two_term_w300_t6@1.03' says; what it does not say is 0 and empty.

    Attributes:
        method: without what adjusts it.
        taper: N of '_tN', pairs.
        attention_factor: what follows '@'.
        parameters: of the method; N of '_nN' is `n_hat`, N of '_wN' `unseen_weight`.
    """

    method: str
    taper: int
    attention_factor: str
    parameters: Mapping[str, int]

    @property
    def adjustment(self) -> str:
        """What the name says beside the method."""
        return "".join(map(str, (*self.parameters.values(), self.taper or "", self.attention_factor)))


_PARAMETERS = {"n": "n_hat", "w": "unseen_weight"}


def parse_adjusted(name: str) -> AdjustedName:
    """Parses 'METHOD', followed by '_nN', '_wN', '_tN' and '@FACTOR' or some of them."""
    plain, _, attention_factor = name.partition("@")
    method, letters = plain, {}
    while suffix := re.fullmatch(r"(\w+)_([ntw])(\d{1,6})", method):
        method = suffix[1]
        letters[suffix[2]] = int(suffix[3])
    parameters = {_PARAMETERS[letter]: number for letter, number in letters.items() if letter in _PARAMETERS}
    return AdjustedName(method, letters.get("t", 0), attention_factor, parameters)


def check_parameters(kind: type[Method], name: AdjustedName) -> None:
    """Raises `InputError` if a name gives the method a parameter that it does not have."""
    known = {field.name for field in dataclasses.fields(kind)}
    for parameter in name.parameters:
        if parameter not in known:
            raise InputError(f"`method` is {name.method!r}, which has no {parameter}: leave it out of the name")


def tapered(factors: Float[AnyArray, "*layers pairs"], reach: int) -> Float[AnyArray, "*layers pairs"]:
    """Factors averaged over neighbouring pairs, geometrically, so that a step becomes a ramp.

    Neighbours up to `reach` pairs away weigh `1 + cos(pi n / (reach + 1))` at a distance of n. Beyond both ends the
    outermost factor continues.
    """
    weights = 1 + np.cos(math.pi * np.arange(-reach, reach + 1) / (reach + 1))
    weights = (weights / weights.sum()).astype(np.float32)
    logarithms = jnp.log(jnp.asarray(factors))
    padded = jnp.pad(logarithms, [(0, 0)] * (logarithms.ndim - 1) + [(reach, reach)], mode="edge")
    pairs = logarithms.shape[-1]
    return jnp.exp(sum(weight * padded[..., n : n + pairs] for n, weight in enumerate(weights)))
