"""Methods under which the slowest pairs stand still."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from rope_jax.errors import InputError
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods.interpolation import BaseChange, PartialRope
from rope_jax.rope.methods.method import ClosedForm, parameter
from rope_jax.rope.relative import STANDSTILL, RelativeScale


@dataclasses.dataclass(frozen=True)
class HardCut(ClosedForm):
    """The slowest pairs stand still, on top of the model's base or a raised one (CoPE's baseline, arXiv 2602.05258)."""

    title = "hard cut"
    clipped: int = parameter(0, "slowest pairs that are clipped; 0 for 20 of 64")
    new_base: float = parameter(0.0, "rotary base to extend with, at least the model's; 0 for the model's")

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        pairs = geometry.head_dim // 2
        clipped = self.clipped or math.ceil(pairs * 20 / 64)
        if not 0 < clipped <= pairs:
            raise InputError(
                f"`clipped` is {self.clipped}: use a number from 1 to {pairs}, the pairs of this model, or 0"
            )
        base = BaseChange(self.new_base or geometry.base).relative(geometry, measure)
        slowest = np.argsort(-geometry.theta(), stable=True)[-clipped:]
        slowed = np.ones(pairs)
        slowed[slowest] = self.slowing(clipped)
        return RelativeScale.create(base.factors * slowed)

    def slowing(self, clipped: int) -> Float[np.ndarray, " clipped"]:
        """Factors of the clipped pairs on top of the base, the fastest of them first."""
        return np.full(clipped, STANDSTILL)


@dataclasses.dataclass(frozen=True)
class Cope(HardCut):
    """CoPE (arXiv 2602.05258): the slowest m pairs taper off until the last stands still.

    `theta'_j = theta_j (1 + cos(pi j / (m - 1))) / 2` for j = 0 ... m - 1. Its authors raise the base as well.
    """

    title = "CoPE"

    def slowing(self, clipped: int) -> Float[np.ndarray, " clipped"]:
        kept = (1 + np.cos(np.linspace(0, math.pi, clipped))) / 2
        return 1 / np.maximum(kept, 1 / STANDSTILL)


@dataclasses.dataclass(frozen=True)
class Nope(ClosedForm):
    """No pair rotates (NoPE). DroPE (arXiv 2512.12167) then trains briefly at the original length."""

    title = "NoPE"

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        return RelativeScale.create(np.full(geometry.head_dim // 2, STANDSTILL))


@dataclasses.dataclass(frozen=True)
class Proportional(PartialRope):
    """`proportional` of transformers 5 (Gemma 4) with `factor` s: the share of pairs that rotate is interpolated.

    With a factor of 1 it is p-RoPE.
    """

    title = "proportional"

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        factors = super().relative(geometry, measure).factors
        return RelativeScale.create(np.where(factors == 1, measure.extension, factors))
