"""LongRoPE2's start: NTK up to a critical pair, interpolation from there on."""

import dataclasses
import math

import numpy as np

from rope_jax.errors import InputError
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods.explicit import longrope_attention_factor
from rope_jax.rope.methods.method import ClosedForm, parameter
from rope_jax.rope.relative import RelativeScale


@dataclasses.dataclass(frozen=True)
class LongRope2(ClosedForm):
    """What LongRoPE2's evolution starts from (arXiv 2502.20082, algorithm 1): `f_i = g^min(i / c, 1)`.

    c is the critical pair, in theory the first that completes at most one period within the original context; the
    authors find that earlier ones do better. g is at least s, and their search draws it from s to 2 s.
    """

    title = "LongRoPE2 start"
    critical_pair: int = parameter(0, "first pair that is interpolated fully; 0 for the theoretical one")
    stretch: float = parameter(1.0, "its factor over the extension factor, at least 1; LongRoPE2 searches up to 2")

    def __post_init__(self):
        if not (math.isfinite(self.stretch) and self.stretch >= 1):
            raise InputError(
                f"`stretch` is {self.stretch}: below 1 the slow pairs leave the angles of pre-training; use 1 or more"
            )

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        pairs = np.arange(geometry.head_dim // 2)
        if not 0 <= self.critical_pair < len(pairs):
            raise InputError(f"`critical_pair` is {self.critical_pair}: use a pair from 1 to {len(pairs) - 1}, or 0")
        critical = self.critical_pair
        if not critical:
            slow = measure.original * geometry.theta().astype(np.float64) <= 2 * math.pi
            critical = max(pairs[slow].min(initial=len(pairs)), 1)
        factors = (self.stretch * measure.extension) ** np.minimum(pairs / critical, 1)
        return RelativeScale.create(factors, longrope_attention_factor(measure.extension, measure.original))
