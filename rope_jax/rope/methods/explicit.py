"""Factors that are given as numbers."""

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike

from rope_jax.errors import InputError
from rope_jax.rope.checks import check_extension, check_head_dim, check_original
from rope_jax.rope.embedding import ScaleVector
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods.method import ClosedForm, parameter
from rope_jax.rope.relative import RelativeScale, rebased


@dataclasses.dataclass(frozen=True)
class Explicit(ClosedForm):
    """Factors from elsewhere: relative to the model's own frequencies, or a whole vector that replaces its scaling."""

    title = "explicit"
    factors: tuple = parameter((), "a number per pair, or a row of them per layer")
    attention_factor: float | tuple[float, ...] = parameter(1.0, "on cos and sin; with rows also one per layer")
    whole: bool = parameter(False, "the factors are of a base alone, and not of the model's own frequencies")
    base: float = parameter(0.0, "rotary base of whole factors; 0 for the model's")

    @property
    def layered(self) -> str:
        return "factors" if np.ndim(self.factors) == 2 else ""

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        return explicit(self.factors, geometry.head_dim, geometry.layers, self.attention_factor)

    def scale(self, geometry: Geometry, measure: Measure) -> ScaleVector:
        if not self.whole:
            return super().scale(geometry, measure)
        given = self.relative(geometry, measure)
        return rebased(
            ScaleVector.create(given.factors, given.attention_factor), self.base or geometry.base, geometry.base
        )


def explicit(
    factors: ArrayLike, head_dim: int, layers: int | None = None, attention_factor: ArrayLike = 1.0
) -> RelativeScale:
    """Factors that are given as numbers, for the whole model or per layer.

    LongRoPE's searched factors (arXiv 2402.13753; `longrope` in Hugging Face) are such a list.

    Args:
        factors: `[D/2]`, or `[layers, D/2]` when `layers` is given.
        head_dim: head dimension D, even.
        layers: number of layers of the model; None allows a single vector only.
        attention_factor: on cos and sin; with rows also `[layers]`.

    Raises:
        InputError: naming the argument and the entry that cannot be used.
    """
    check_head_dim(head_dim)
    try:
        values = np.asarray(factors)
        # Strings and booleans would become numbers.
        if values.dtype.kind not in "iuf":
            raise TypeError
        values = values.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            "`factors` is not an array of numbers: give one number per pair, in rows of equal length"
        ) from None
    pairs = head_dim // 2
    shapes = [(pairs,)] if layers is None else [(pairs,), (layers, pairs)]
    if values.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise InputError(f"`factors` has shape {list(values.shape)}: a head dimension of {head_dim} needs {wanted}")
    with np.errstate(over="ignore"):  # becomes infinite, which is reported below
        values = values.astype(np.float32)
    unusable = ~(np.isfinite(values) & (values > 0))
    if unusable.any():
        where = np.argwhere(unusable)[0].tolist()
        raise InputError(
            f"`factors` has {values[tuple(where)]} at {where}: every factor must be a finite number above 0"
        )
    found = RelativeScale.create(values, attention_factor)
    if found.attention_factor.shape not in ((), values.shape[:-1]):
        raise InputError(
            f"`attention_factor` has shape {list(found.attention_factor.shape)}, and `factors` {list(values.shape)}: "
            "give one number, or one for each row"
        )
    return found


def longrope_attention_factor(extension: float, original: int) -> float:
    """LongRoPE's factor on cos and sin, `sqrt(1 + ln s / ln L)` (arXiv 2402.13753; `longrope` in Hugging Face)."""
    check_extension(extension)
    check_original(original)
    return math.sqrt(1 + math.log(extension) / math.log(original))
