"""Interpolation by parts: fast pairs are kept, slow ones interpolated, and a ramp lies between them."""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from rope_jax.errors import InputError
from rope_jax.rope.checks import check_base, check_extension, check_head_dim, check_original
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods.method import ClosedForm
from rope_jax.rope.relative import RelativeScale


@dataclasses.dataclass(frozen=True)
class Yarn(ClosedForm):
    """YaRN (arXiv 2309.00071) in Hugging Face's form, which is that of the paper's Table 3."""

    title = "YaRN"

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        return extended_yarn(geometry, measure)


def extended_yarn(geometry: Geometry, measure: Measure) -> RelativeScale:
    """`yarn` of a model that may scale already: its ramp lies where the model's own frequencies are."""
    own = np.asarray(geometry.own.factors)
    return yarn(geometry.base, geometry.head_dim, measure.extension, measure.original, own=own)


def yarn(
    base: float,
    head_dim: int,
    extension: float,
    original: int,
    *,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    attention_factor: float | None = None,
    own: ArrayLike = 1.0,
) -> RelativeScale:
    """YaRN (arXiv 2309.00071) as it is served: `1/f_i = (1 - g_i)/s + g_i`.

    `g_i` falls linearly in i from 1 (keep) to 0 (interpolate) between the pairs that complete `beta_fast` and
    `beta_slow` periods within the original context: `i(beta) = D ln(L / (2 pi beta)) / (2 ln base)`.

    Args:
        extension: extension factor s, at least 1.
        original: original context L, tokens.
        truncate: round the two ends of the ramp outward to whole pairs.
        attention_factor: on cos and sin; by default `0.1 ln s + 1` (section 3.4).
        own: `[D/2]`, factors by which the model scales already; the result is relative to them.
    """
    ramp = Ramp(base, head_dim, original, (beta_fast, beta_slow), truncate)
    check_extension(extension)
    keep = ramp.kept(own)
    if attention_factor is None:
        attention_factor = yarn_attention_factor(extension)
    return RelativeScale.create(1 / ((1 - keep) / extension + keep), attention_factor)


@dataclasses.dataclass(frozen=True)
class YarnWavelength(ClosedForm):
    """YaRN with wavelengths mixed instead of frequencies (PoSE, arXiv 2309.10400, calls it revised YaRN)."""

    title = "YaRN (wavelengths)"

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        s = measure.extension
        keep = Ramp(geometry.base, geometry.head_dim, measure.original).kept(geometry.own.factors)
        return RelativeScale.create((1 - keep) * s + keep)


@dataclasses.dataclass(frozen=True)
class YarnResonance(ClosedForm):
    """YaRN with its wavelengths rounded to whole positions (Resonance RoPE, arXiv 2403.00071)."""

    title = "Resonance YaRN"

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        return resonance(geometry.theta(), extended_yarn(geometry, measure))


def resonance(theta: ArrayLike, vector: RelativeScale) -> RelativeScale:
    """Rounds the wavelengths of an extension to whole positions, so that angles repeat (arXiv 2403.00071).

    `theta'_i = 2 pi / round(2 pi f_i / theta_i)`, hence `f'_i = round(lambda_i) theta_i / 2 pi`. It composes with
    any method; on factors of 1 it rounds the model's own wavelengths. The vector is relative to `theta`,
    radians per position, at most pi.
    """
    theta = np.asarray(theta, np.float64)
    wavelengths = 2 * math.pi * vector.factors.astype(np.float64) / theta
    return RelativeScale.create(np.round(wavelengths) * theta / (2 * math.pi), vector.attention_factor)


@dataclasses.dataclass(frozen=True)
class YarnPaper(ClosedForm):
    """YaRN as its paper has it (arXiv 2309.00071, section 3.2, "NTK-by-parts"); `yarn` is what is served."""

    title = "YaRN (paper's form)"

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        s = measure.extension
        keep = _ramp_over_periods(geometry.theta(), measure.original, 1.0, 32.0)
        return RelativeScale.create(1 / ((1 - keep) / s + keep), yarn_attention_factor(s))


@dataclasses.dataclass(frozen=True)
class Llama3(ClosedForm):
    """LLaMA-3.1's scaling (`llama3` in Hugging Face; Meta's `apply_scaling`)."""

    title = "LLaMA-3.1"

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        return llama3(geometry.theta(), measure.extension, measure.original)


def llama3(
    theta: ArrayLike,
    extension: float,
    original: int,
    low_frequency_factor: float = 1.0,
    high_frequency_factor: float = 4.0,
) -> RelativeScale:
    """`1/f_i = (1 - m_i)/s + m_i`, `m_i = clip((r_i - low)/(high - low), 0, 1)`.

    `r_i = L theta_i / 2 pi` are the periods of a pair within the original context of L tokens, at frequencies before
    scaling, `[D/2]`, radians per position. With `low` of them or fewer it is interpolated, with `high` or more kept.
    """
    check_extension(extension)
    check_original(original)
    if not 0 < low_frequency_factor < high_frequency_factor:
        raise InputError(
            f"`low_frequency_factor` is {low_frequency_factor} and `high_frequency_factor` {high_frequency_factor}:"
            " both must be positive, the first below the second (LLaMA: 1, 4)"
        )
    keep = _ramp_over_periods(theta, original, low_frequency_factor, high_frequency_factor)
    return RelativeScale.create(1 / ((1 - keep) / extension + keep))


def yarn_attention_factor(extension: float) -> float:
    """`0.1 ln s + 1` (arXiv 2309.00071, section 3.4)."""
    return 0.1 * math.log(extension) + 1


def _ramp_over_periods(theta: ArrayLike, original: int, low: float, high: float) -> Float[np.ndarray, " pairs"]:
    """1 (keep) for pairs with at least `high` periods within the context, 0 (interpolate) for at most `low`."""
    periods = original * np.asarray(theta, np.float64) / (2 * math.pi)
    return np.clip((periods - low) / (high - low), 0, 1)


@dataclasses.dataclass(frozen=True)
class Ramp:
    """YaRN's ramp in Hugging Face's form: linear in the pair, between those that complete two numbers of periods.

    Attributes:
        betas: periods within the original context from which a pair is kept, and up to which it is interpolated.
        truncate: round the two ends outward to whole pairs.
    """

    base: float
    head_dim: int
    original: int
    betas: tuple[float, float] = (32.0, 1.0)
    truncate: bool = True

    def __post_init__(self):
        check_head_dim(self.head_dim)
        check_base(self.base)
        check_original(self.original)
        fast, slow = self.betas
        if not 0 < slow < fast:
            raise InputError(
                f"`beta_slow` is {slow} and `beta_fast` {fast}: both must be positive, the first below the second "
                "(YaRN uses 1 and 32)"
            )

    def ends(self) -> tuple[float, float]:
        """Last pair that is kept, and first that is interpolated."""
        low, high = (float(self._pair(self.original / (periods * 2 * math.pi))) for periods in self.betas)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        # d - 1 and not d/2 - 1 is Hugging Face's; served models were tuned with it.
        return max(low, 0), min(high, self.head_dim - 1)

    def places(self, own: ArrayLike = 1.0) -> Float[np.ndarray, " pairs"]:
        """Where pairs lie: i, and for a model that scales already, where the base alone would have their frequency."""
        return np.arange(self.head_dim // 2) + self._pair(np.asarray(own, np.float64))

    def kept(self, own: ArrayLike = 1.0) -> Float[np.ndarray, " pairs"]:
        """YaRN's g, from 1 (keep) to 0 (interpolate)."""
        low, high = self.ends()
        if low == high:
            high += 0.001  # Hugging Face's
        return 1 - np.clip((self.places(own) - low) / (high - low), 0, 1)

    def _pair(self, ratio: Any) -> Any:
        """Pairs from the fastest one to a frequency that is lower by this ratio."""
        return self.head_dim * np.log(ratio) / (2 * math.log(self.base))
