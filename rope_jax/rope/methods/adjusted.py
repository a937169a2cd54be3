"""Any method with another attention factor, with its factors smoothed over neighbouring pairs, or in some layers."""

import dataclasses
import math
import re
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
    """What a name such as 'two_term_t6@1.03' says; what it does not say is 0 and empty."""

    method: str
    taper: int
    attention_factor: str


def parse_adjusted(name: str) -> AdjustedName:
    """Parses 'METHOD', 'METHOD_tTAPER', 'METHOD@FACTOR' or 'METHOD_tTAPER@FACTOR'."""
    method, _, attention_factor = name.partition("@")
    tapered_name = re.fullmatch(r"(\w+)_t(\d{1,4})", method)
    if tapered_name:
        return AdjustedName(tapered_name[1], int(tapered_name[2]), attention_factor)
    return AdjustedName(method, 0, attention_factor)


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
