"""Interpolation by a power of s that rises from 0 to 1 over the pairs between 32 periods and 1 (mixed radix)."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods.by_parts import Ramp, yarn_attention_factor
from rope_jax.rope.methods.method import ClosedForm
from rope_jax.rope.relative import RelativeScale

# Periods within the original context from which a pair is kept, and up to which it is interpolated (YaRN).
FAST, SLOW = 32.0, 1.0


@dataclasses.dataclass(frozen=True)
class MrRopeUni(ClosedForm):
    """MrRoPE-Uni (arXiv 2601.22181): `f_i = s^e`, `e` linear in i between YaRN's two correction pairs."""

    title = "MrRoPE-Uni"

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        past, width = _past_first(geometry, measure)
        return _power(measure, past / width)


@dataclasses.dataclass(frozen=True)
class MrRopePro(ClosedForm):
    """MrRoPE-Pro (arXiv 2601.22181): the radix of each next pair between the correction pairs grows.

    `f_i = s^e` with `e = n (n + 1) / (w (w + 1))`, n pairs after the first correction pair, w between both.
    """

    title = "MrRoPE-Pro"

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        past, width = _past_first(geometry, measure)
        return _power(measure, past * (past + 1) / (width * (width + 1)))


@dataclasses.dataclass(frozen=True)
class TailSpline(ClosedForm):
    """TailSpline, a preview: unpublished and known by its author's claims only.

    `f_i = s^e` with `e = q (3 n^2 + 3 n + 1 - q^2) / (n (n + 1) (2 n + 1))`: q pairs after the last one of more than 32
    periods within the original context, of n up to the first one of less than 1.
    """

    title = "TailSpline preview"

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        pairs = np.arange(geometry.head_dim // 2)
        periods = measure.original * geometry.theta().astype(np.float64) / (2 * math.pi)
        # Where no pair is as fast or as slow, one beyond the ends takes its place.
        last = pairs[periods > FAST].max(initial=-1)
        first = pairs[(periods < SLOW) & (pairs > last)].min(initial=len(pairs))
        n = first - last
        q = np.clip(pairs - last, 0, n)
        return _power(measure, q * (3 * n**2 + 3 * n + 1 - q**2) / (n * (n + 1) * (2 * n + 1)))


def _past_first(geometry: Geometry, measure: Measure) -> tuple[Float[np.ndarray, " pairs"], float]:
    """How far pairs lie after the first correction pair, up to the distance between both, and that distance."""
    ramp = Ramp(geometry.base, geometry.head_dim, measure.original, (FAST, SLOW))
    low, high = ramp.ends()
    width = max(high - low, 1)
    return np.clip(ramp.places(geometry.own.factors) - low, 0, width), width


def _power(measure: Measure, exponents: Float[np.ndarray, " pairs"]) -> RelativeScale:
    return RelativeScale.create(measure.extension**exponents, yarn_attention_factor(measure.extension))
