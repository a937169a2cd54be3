"""Scale factors relative to the frequencies that a model already has."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32
from numpy.typing import ArrayLike

from rope_jax.rope.checks import check_attention_factor, check_base
from rope_jax.rope.embedding import ScaleVector

# The factor of a pair that does not rotate. Stock engines and exported files take finite factors only.
STANDSTILL = 2.0**60


@dataclasses.dataclass(frozen=True, eq=False)
class RelativeScale:
    """An extension on top of a model's own scaling: pair `i` rotates at its own frequency over `factors[i]`.

    Not what a model takes: that is a `ScaleVector`, relative to the frequencies of the base alone, which `compose`
    gives. On the host, computed in float64 and rounded to float32 once.

    Attributes:
        factors: a row per layer, or one vector for all; 1 extrapolates, `s` interpolates.
        attention_factor: multiplies cos and sin, also one per layer; attention logits scale by its square.
    """

    factors: Float32[np.ndarray, "*layers pairs"]
    attention_factor: Float[np.ndarray, "*each"]

    @classmethod
    def create(cls, factors: ArrayLike, attention_factor: ArrayLike = 1.0) -> RelativeScale:
        """From anything array-like."""
        numbers = np.asarray(attention_factor, np.float64)
        for number in numbers.flat:
            check_attention_factor(number)
        return cls(np.asarray(factors, np.float32), numbers)


def rebased(scale: ScaleVector, base: float, to: float) -> ScaleVector:
    """A scale vector of a rotary base, relative to another one: of the same frequencies."""
    if base == to:
        return scale
    check_base(base)
    check_base(to)
    shares = np.arange(0, 2 * scale.factors.shape[-1], 2) / (2 * scale.factors.shape[-1])
    return ScaleVector.create(np.asarray(scale.factors, np.float64) * (base / to) ** shares, scale.attention_factor)


def compose(own: ScaleVector, extension: RelativeScale) -> ScaleVector:
    """An extension on top of a model's own scaling: frequencies divide by both factors, cos and sin multiply by both.

    Args:
        own: what the model's config carries; `identity` for nothing.
        extension: relative to that; may be per layer.
    """
    attention_factor = own.attention_factor * extension.attention_factor.astype(np.float32)
    # A pair that stands still is not slowed further, which would end in an infinite factor.
    slowest = jnp.maximum(own.factors, STANDSTILL)
    return ScaleVector.create(jnp.minimum(own.factors * extension.factors, slowest), attention_factor)
