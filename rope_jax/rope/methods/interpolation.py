"""Extrapolation and the interpolations that follow from the extension factor alone."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from rope_jax.errors import InputError
from rope_jax.rope.checks import check_base, check_extension, check_head_dim, check_original
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods.method import ClosedForm, parameter
from rope_jax.rope.relative import RelativeScale

# The factor of a pair that does not rotate.
STANDSTILL = 2.0**60


@dataclasses.dataclass(frozen=True)
class Extrapolation(ClosedForm):
    """Leaves every frequency as it was trained: `f_i = 1` (RoFormer, arXiv 2104.09864)."""

    title = "extrapolation"

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        """Factors of 1."""
        return RelativeScale.create(np.ones(geometry.head_dim // 2))


@dataclasses.dataclass(frozen=True)
class PositionInterpolation(ClosedForm):
    """Position interpolation, PI (arXiv 2306.15595)."""

    title = "PI"

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        """Factors of s."""
        return position_interpolation(geometry.head_dim, measure.extension)


def position_interpolation(head_dim: int, extension: float) -> RelativeScale:
    """`f_i = s` (PI, arXiv 2306.15595; `linear` in Hugging Face).

    Args:
        head_dim: head dimension D, even.
        extension: extension factor s = L'/L, at least 1.

    Returns:
        Factors `[D/2]`.

    Raises:
        InputError: naming the argument that is out of range.
    """
    check_head_dim(head_dim)
    check_extension(extension)
    return RelativeScale.create(np.full(head_dim // 2, extension))


@dataclasses.dataclass(frozen=True)
class NTK(ClosedForm):
    """NTK-aware interpolation (bloc97, "NTK-Aware Scaled RoPE", r/LocalLLaMA, 2023)."""

    title = "NTK"

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        """`f_i = s^(2i/(d-2))`."""
        return ntk(geometry.head_dim, measure.extension)


def ntk(head_dim: int, extension: float) -> RelativeScale:
    """`f_i = s^(2i/(d-2))`, from 1 at the highest frequency to s at the lowest.

    The same as raising the base to `base * s^(d/(d-2))` (bloc97; arXiv 2309.00071, section 3.1).

    Args:
        head_dim: head dimension D, even, above 2.
        extension: extension factor s = L'/L, at least 1.

    Returns:
        Factors `[D/2]`.

    Raises:
        InputError: naming the argument that is out of range.
    """
    check_head_dim(head_dim)
    check_extension(extension)
    if head_dim == 2:
        raise InputError("`head_dim` is 2: NTK spreads the extension over two or more pairs; use PI", field="head_dim")
    return RelativeScale.create(float(extension) ** (np.arange(0, head_dim, 2) / (head_dim - 2)))


@dataclasses.dataclass(frozen=True)
class DynamicNTK(ClosedForm):
    """NTK that grows with the sequence, at the extended context (`dynamic` in Hugging Face)."""

    title = "dynamic NTK"

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        """NTK by `s L'/L - (s - 1)`."""
        return dynamic_ntk(geometry.head_dim, measure.extension, measure.target, measure.original)


def dynamic_ntk(head_dim: int, extension: float, length: int, original: int) -> RelativeScale:
    """`ntk` by `s l / L - (s - 1)` at length l, at least 1 (emozilla, "Dynamically Scaled RoPE", r/LocalLLaMA, 2023).

    One vector holds for one length: keys that are already cached for a shorter one were rotated otherwise.

    Args:
        head_dim: head dimension D, even, above 2.
        extension: configured factor s, at least 1.
        length: length l of the sequence, tokens.
        original: original context L, tokens.

    Returns:
        Factors `[D/2]`; all 1 up to the original length.

    Raises:
        InputError: naming the argument that is out of range.
    """
    check_extension(extension)
    check_original(original)
    return ntk(head_dim, extension * max(length, original) / original - (extension - 1))


@dataclasses.dataclass(frozen=True)
class BaseChange(ClosedForm):
    """Another rotary base (adjusted base frequency, ABF, arXiv 2309.16039).

    Attributes:
        new_base: rotary base to extend with, at least the model's.
    """

    title = "base change"
    new_base: float = parameter(0.0, "rotary base to extend with, at least the model's")

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        """`f_i = (base'/base)^(2i/d)`."""
        return base_change(geometry.base, self.new_base, geometry.head_dim)


def base_change(base: float, new_base: float, head_dim: int) -> RelativeScale:
    """`f_i = (base'/base)^(2i/d)` (ABF, arXiv 2309.16039).

    Args:
        base: rotary base of the model, above 1.
        new_base: rotary base base' to extend with, at least `base`.
        head_dim: head dimension D, even.

    Returns:
        Factors `[D/2]`.

    Raises:
        InputError: naming the argument that is out of range.
    """
    check_head_dim(head_dim)
    check_base(base)
    if not (math.isfinite(new_base) and new_base >= base):
        raise InputError(
            f"`new_base` is {new_base}: it must be finite and at least the model's base, {base:g}, to extend it",
            field="new_base",
        )
    return RelativeScale.create((new_base / base) ** (np.arange(0, head_dim, 2) / head_dim))


@dataclasses.dataclass(frozen=True)
class CriticalBase(ClosedForm):
    """Base change that keeps the critical dimension (scaling laws of RoPE-based extrapolation, arXiv 2310.05209)."""

    title = "critical base"

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        """`base_change` to `critical_base`."""
        new_base = critical_base(geometry.base, measure.original, measure.target)
        return base_change(geometry.base, new_base, geometry.head_dim)


def critical_base(base: float, original: int, target: int) -> float:
    """The base whose critical dimension is the same at the target as the model's is at the original context.

    `base' = base^(log_{L/2pi}(L'/2pi))`: the pairs that complete a period within the context stay the same ones
    (arXiv 2310.05209, theorem 1).

    Args:
        base: rotary base of the model, above 1.
        original: original context L, tokens, at least 7.
        target: extended context L', tokens, at least L.

    Returns:
        The base.

    Raises:
        InputError: naming the argument that is out of range.
    """
    check_base(base)
    if not 2 * math.pi < original <= target:
        raise InputError(
            f"`original` is {original} and `target` {target}: the first must hold a period (7 tokens), and the second"
            " be at least the first",
            field="original",
        )
    return base ** (math.log(target / (2 * math.pi)) / math.log(original / (2 * math.pi)))


@dataclasses.dataclass(frozen=True)
class PartialRope(ClosedForm):
    """p-RoPE: the lowest frequencies do not rotate at all, `theta'_i = 0` (arXiv 2410.06205).

    Stock engines and exported files take finite factors only, so a pair that does not rotate has a factor of 2^60: at
    2^24 positions it has rotated by less than 2^-36 rad, and float32 cosines of that are 1.

    Attributes:
        turning: share p of the pairs, the highest frequencies, that keep rotating; from 0 to 1.
    """

    title = "p-RoPE"
    turning: float = parameter(0.75, "share of pairs that keep rotating, from 0 to 1")

    def __post_init__(self):
        if not 0 <= self.turning <= 1:
            raise InputError(
                f"`turning` is {self.turning}: it is the share of pairs that rotate, from 0 to 1", field="turning"
            )

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        """Factors of 1 for the first `int(p D / 2)` pairs."""
        head_dim = geometry.head_dim
        rotating = np.arange(head_dim // 2) < int(self.turning * head_dim // 2)
        return RelativeScale.create(np.where(rotating, 1.0, STANDSTILL))
