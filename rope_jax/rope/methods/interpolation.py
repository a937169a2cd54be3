"""Extrapolation, and interpolations that follow from the extension factor alone."""

import dataclasses
import math

import numpy as np

from rope_jax.errors import InputError
from rope_jax.rope.checks import check_extension, check_head_dim
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods.method import ClosedForm, parameter
from rope_jax.rope.relative import STANDSTILL, RelativeScale


@dataclasses.dataclass(frozen=True)
class Extrapolation(ClosedForm):
    """Leaves every frequency as it was trained: `f_i = 1` (RoFormer, arXiv 2104.09864)."""

    title = "extrapolation"

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        return RelativeScale.create(np.ones(geometry.head_dim // 2))


@dataclasses.dataclass(frozen=True)
class PositionInterpolation(ClosedForm):
    """`f_i = s` (PI, arXiv 2306.15595)."""

    title = "PI"

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        return position_interpolation(geometry.head_dim, measure.extension)


def position_interpolation(head_dim: int, extension: float) -> RelativeScale:
    """`f_i = s` (`linear` in Hugging Face)."""
    check_head_dim(head_dim)
    check_extension(extension)
    return RelativeScale.create(np.full(head_dim // 2, extension))


@dataclasses.dataclass(frozen=True)
class NTK(ClosedForm):
    """NTK-aware interpolation (bloc97, "NTK-Aware Scaled RoPE", r/LocalLLaMA, 2023; arXiv 2309.00071, section 3.1)."""

    title = "NTK"

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        return ntk(geometry.head_dim, measure.extension)


@dataclasses.dataclass(frozen=True)
class DynamicNTK(ClosedForm):
    """NTK by `s l / L - (s - 1)` at length l, here `l = L'` (emozilla, "Dynamically Scaled RoPE", r/LocalLLaMA, 2023).

    `dynamic` in Hugging Face. One vector holds for one length: keys that are already cached for a shorter one were
    rotated otherwise.
    """

    title = "dynamic NTK"

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        s = measure.extension
        return ntk(geometry.head_dim, s * measure.target / measure.original - (s - 1))


def ntk(head_dim: int, extension: float) -> RelativeScale:
    """`f_i = s^(2i/(D-2))`, from 1 at the highest frequency to s at the lowest; the base is raised by `s^(D/(D-2))`."""
    check_head_dim(head_dim)
    check_extension(extension)
    if head_dim == 2:
        raise InputError("`head_dim` is 2: NTK spreads the extension over two or more pairs; use PI")
    return RelativeScale.create(float(extension) ** (np.arange(0, head_dim, 2) / (head_dim - 2)))


@dataclasses.dataclass(frozen=True)
class BaseChange(ClosedForm):
    """Another rotary base, base': `f_i = (base'/base)^(2i/D)` (adjusted base frequency, ABF, arXiv 2309.16039)."""

    title = "base change"
    new_base: float = parameter(0.0, "rotary base to extend with, at least the model's")

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        base, head_dim = geometry.base, geometry.head_dim
        if not (math.isfinite(self.new_base) and self.new_base >= base):
            raise InputError(
                f"`new_base` is {self.new_base}: it must be finite and at least the model's base, {base:g}, to extend"
                " it"
            )
        return RelativeScale.create((self.new_base / base) ** (np.arange(0, head_dim, 2) / head_dim))


@dataclasses.dataclass(frozen=True)
class CriticalBase(ClosedForm):
    """Base change to `base^(log_{L/2pi}(L'/2pi))` (scaling laws of RoPE extrapolation, arXiv 2310.05209, theorem 1).

    The pairs that complete a period within the context stay the same ones, also those of a model that scales already:
    `f_i = theta_i^(1 - log_{L/2pi}(L'/2pi))`, with its own frequencies.
    """

    title = "critical base"

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        if measure.original <= 2 * math.pi:
            raise InputError(
                f"`original` is {measure.original}: a critical base takes a context of a period, 7 tokens, or more"
            )
        exponent = math.log(measure.target / (2 * math.pi)) / math.log(measure.original / (2 * math.pi))
        plain = BaseChange(geometry.base**exponent).relative(geometry, measure)
        own = np.asarray(geometry.own.factors, np.float64) ** (exponent - 1)
        return RelativeScale.create(plain.factors * own)


@dataclasses.dataclass(frozen=True)
class PartialRope(ClosedForm):
    """p-RoPE: all but the first `int(p D / 2)` pairs do not rotate, `theta'_i = 0` (arXiv 2410.06205); p is `turning`.

    Stock engines and exported files take finite factors only, so a pair that does not rotate has a factor of 2^60: at
    2^24 positions it has rotated by less than 2^-36 rad, and float32 cosines of that are 1.
    """

    title = "p-RoPE"
    turning: float = parameter(0.75, "share of pairs that keep rotating, from 0 to 1")

    def __post_init__(self):
        if not 0 <= self.turning <= 1:
            raise InputError(f"`turning` is {self.turning}: it is the share of pairs that rotate, from 0 to 1")

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        head_dim = geometry.head_dim
        rotating = np.arange(head_dim // 2) < int(self.turning * head_dim // 2)
        return RelativeScale.create(np.where(rotating, 1.0, STANDSTILL))
