"""Closed-form scale vectors: the ways to extend a context that need no search.

Factors are relative: a pair of the model at hand turns at `theta_i / f_i`, whatever scaling its own config
has already put into `theta`. Two extensions, one after the other, multiply; see `compose`. Everything is
computed on the host in float64 and rounded to float32 once.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from rope_jax.errors import InputError
from rope_jax.rope.embedding import ScaleVector, check_base, identity

# The factor of a pair that does not turn.
STANDSTILL = 2.0**60


def extrapolation(head_dim: int) -> ScaleVector:
    """Leaves every frequency as it was trained: `f_i = 1` (RoFormer, arXiv 2104.09864).

    Args:
        head_dim: head dimension D, even.

    Returns:
        Factors of one, `[D/2]`.
    """
    _check_head_dim(head_dim)
    return identity(head_dim)


def position_interpolation(head_dim: int, extension: float) -> ScaleVector:
    """Position interpolation: `f_i = s` (PI, arXiv 2306.15595; `linear` in Hugging Face).

    Args:
        head_dim: head dimension D, even.
        extension: extension factor s = L'/L, at least 1.

    Returns:
        Factors `[D/2]`, all s.

    Raises:
        InputError: if an argument is out of range.
    """
    _check_head_dim(head_dim)
    _check_extension(extension)
    return ScaleVector.create(np.full(head_dim // 2, extension))


def ntk(head_dim: int, extension: float) -> ScaleVector:
    """NTK-aware interpolation: `f_i = s^(2i/(d-2))`, from 1 at the highest frequency to s at the lowest.

    The same as raising the base to `base * s^(d/(d-2))` (bloc97, "NTK-Aware Scaled RoPE", r/LocalLLaMA, 2023;
    arXiv 2309.00071, section 3.1).

    Args:
        head_dim: head dimension D, even, above 2.
        extension: extension factor s = L'/L, at least 1.

    Returns:
        Factors `[D/2]`.

    Raises:
        InputError: if an argument is out of range.
    """
    _check_head_dim(head_dim)
    _check_extension(extension)
    if head_dim == 2:
        raise InputError("rope.head_dim is 2: NTK spreads the extension between two or more pairs; use PI")
    return ScaleVector.create(float(extension) ** (np.arange(0, head_dim, 2) / (head_dim - 2)))


def yarn(
    base: float,
    head_dim: int,
    extension: float,
    original: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    attention_factor: float | None = None,
) -> ScaleVector:
    """YaRN (arXiv 2309.00071) in Hugging Face's form, which is that of the paper's Table 3.

    `1/f_i = (1 - g_i)/s + g_i`, where `g_i` falls linearly in i from 1 (keep) to 0 (interpolate) between the
    pairs that complete `beta_fast` and `beta_slow` turns over the original context:
    `i(beta) = d ln(L / (2 pi beta)) / (2 ln base)`. The paper's own form, linear in turns instead of i, is
    `yarn_paper`.

    Args:
        base: rotary base, above 1.
        head_dim: head dimension D, even.
        extension: extension factor s = L'/L, at least 1.
        original: original context L, tokens.
        beta_fast: turns from which a pair is kept.
        beta_slow: turns up to which a pair is interpolated; below `beta_fast`.
        truncate: round the two ends of the ramp outward to whole pairs.
        attention_factor: on cos and sin; by default `0.1 ln s + 1` (arXiv 2309.00071, section 3.4).

    Returns:
        Factors `[D/2]` and the attention factor.

    Raises:
        InputError: if an argument is out of range.
    """
    _check_head_dim(head_dim)
    _check_extension(extension)
    _check_original(original)
    keep = _keep_by_pair(base, head_dim, original, beta_fast, beta_slow, truncate)
    if attention_factor is None:
        attention_factor = 0.1 * math.log(extension) + 1
    return ScaleVector.create(1 / ((1 - keep) / extension + keep), attention_factor)


def yarn_paper(
    theta: ArrayLike,
    extension: float,
    original: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float | None = None,
) -> ScaleVector:
    """YaRN (arXiv 2309.00071) as its paper has it, section 3.2 ("NTK-by-parts"); `yarn` is what is served.

    `1/f_i = (1 - g_i)/s + g_i` with `g_i = clip((r_i - beta_slow)/(beta_fast - beta_slow), 0, 1)`, where
    `r_i = L theta_i / 2 pi` are the turns over the original context.

    Args:
        theta: `[D/2]`, frequencies before scaling, radians per position.
        extension: extension factor s, at least 1.
        original: original context L, tokens.
        beta_fast: turns from which a pair is kept.
        beta_slow: turns up to which a pair is interpolated; below `beta_fast`.
        attention_factor: on cos and sin; by default `0.1 ln s + 1` (section 3.4).

    Returns:
        Factors `[D/2]` and the attention factor.

    Raises:
        InputError: if an argument is out of range.
    """
    _check_extension(extension)
    _check_original(original)
    _check_betas(beta_fast, beta_slow)
    turns = original * np.asarray(theta, np.float64) / (2 * math.pi)
    keep = np.clip((turns - beta_slow) / (beta_fast - beta_slow), 0, 1)
    if attention_factor is None:
        attention_factor = 0.1 * math.log(extension) + 1
    return ScaleVector.create(1 / ((1 - keep) / extension + keep), attention_factor)


def yarn_wavelength(
    base: float,
    head_dim: int,
    extension: float,
    original: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
) -> ScaleVector:
    """YaRN with wavelengths mixed instead of frequencies: `f_i = (1 - g_i) s + g_i`.

    PoSE (arXiv 2309.10400) calls it revised YaRN; the ramp `g_i` is that of `yarn`.

    Args:
        base: rotary base, above 1.
        head_dim: head dimension D, even.
        extension: extension factor s, at least 1.
        original: original context L, tokens.
        beta_fast: turns from which a pair is kept.
        beta_slow: turns up to which a pair is interpolated; below `beta_fast`.
        truncate: round the two ends of the ramp outward to whole pairs.

    Returns:
        Factors `[D/2]`, attention factor 1.

    Raises:
        InputError: if an argument is out of range.
    """
    _check_head_dim(head_dim)
    _check_extension(extension)
    _check_original(original)
    keep = _keep_by_pair(base, head_dim, original, beta_fast, beta_slow, truncate)
    return ScaleVector.create((1 - keep) * extension + keep)


def dynamic_ntk(head_dim: int, extension: float, length: int, original: int) -> ScaleVector:
    """NTK that grows with the sequence: `ntk` by `s l / L - (s - 1)` at length l, at least 1.

    emozilla, "Dynamically Scaled RoPE", r/LocalLLaMA, 2023; `dynamic` in Hugging Face. One vector holds for one
    length: keys that are already cached for a shorter one were turned otherwise.

    Args:
        head_dim: head dimension D, even, above 2.
        extension: configured factor s, at least 1.
        length: length l of the sequence, tokens.
        original: original context L, tokens.

    Returns:
        Factors `[D/2]`; all 1 up to the original length.

    Raises:
        InputError: if an argument is out of range.
    """
    _check_extension(extension)
    _check_original(original)
    return ntk(head_dim, extension * max(length, original) / original - (extension - 1))


def base_change(base: float, new_base: float, head_dim: int) -> ScaleVector:
    """Another rotary base: `f_i = (base'/base)^(2i/d)` (adjusted base frequency, ABF, arXiv 2309.16039).

    Args:
        base: rotary base of the model, above 1.
        new_base: rotary base base' to extend with, at least `base`.
        head_dim: head dimension D, even.

    Returns:
        Factors `[D/2]`.

    Raises:
        InputError: if an argument is out of range.
    """
    check_base(base, head_dim)
    if not (math.isfinite(new_base) and new_base >= base):
        raise InputError(
            f"rope.new_base is {new_base}: it must be finite and at least the model's base, {base:g}, to extend it"
        )
    return ScaleVector.create((new_base / base) ** (np.arange(0, head_dim, 2) / head_dim))


def critical_base(base: float, original: int, target: int) -> float:
    """The base whose critical dimension is the same at the target as the model's is at the original context.

    `base' = base^(log_{L/2pi}(L'/2pi))`: the pairs that complete a turn within the context stay the same ones
    (scaling laws of RoPE-based extrapolation, arXiv 2310.05209, theorem 1). For use with `base_change`.

    Args:
        base: rotary base of the model, above 1.
        original: original context L, tokens, at least 7.
        target: extended context L', tokens, at least L.

    Returns:
        The base.

    Raises:
        InputError: if an argument is out of range.
    """
    if not base > 1:
        raise InputError(f"rope.base is {base}: it must be above 1 (LLaMA2 uses 10000)")
    if not 2 * math.pi < original <= target:
        raise InputError(
            f"context.original is {original} and context.target {target}: the first must hold a turn (7 tokens), and"
            " the second be at least the first"
        )
    return base ** (math.log(target / (2 * math.pi)) / math.log(original / (2 * math.pi)))


def resonance(theta: ArrayLike, vector: ScaleVector) -> ScaleVector:
    """Rounds the wavelengths of an extension to whole positions, so that angles repeat (arXiv 2403.00071).

    `theta'_i = 2 pi / round(2 pi f_i / theta_i)`, hence `f'_i = round(lambda_i) theta_i / 2 pi`. It composes with
    any method, and on the identity it rounds the model's own wavelengths.

    Args:
        theta: `[D/2]`, frequencies that `vector` is relative to, radians per position; at most pi.
        vector: the extension.

    Returns:
        Factors of the vector's shape, and its attention factor.
    """
    theta = np.asarray(theta, np.float64)
    wavelengths = 2 * math.pi * np.asarray(vector.factors, np.float64) / theta
    return ScaleVector.create(np.round(wavelengths) * theta / (2 * math.pi), vector.attention_factor)


def partial(head_dim: int, share: float) -> ScaleVector:
    """p-RoPE: the lowest frequencies are not turned at all, `theta'_i = 0` (arXiv 2410.06205).

    Stock engines and exported files take finite factors only, so a pair that is not turned has a factor of 2^60:
    at 2^24 positions it has turned by less than 2^-36 rad, and float32 cosines of that are 1.

    Args:
        head_dim: head dimension D, even.
        share: share p of the pairs, the highest frequencies, that keep turning; from 0 to 1.

    Returns:
        Factors `[D/2]`, of which the first `int(p D / 2)` are 1.

    Raises:
        InputError: if an argument is out of range.
    """
    _check_head_dim(head_dim)
    if not 0 <= share <= 1:
        raise InputError(f"rope.share is {share}: it is the share of pairs that turn, from 0 to 1")
    turning = np.arange(head_dim // 2) < int(share * head_dim // 2)
    return ScaleVector.create(np.where(turning, 1.0, STANDSTILL))


def llama3(
    theta: ArrayLike,
    extension: float,
    original: int,
    low_frequency_factor: float = 1.0,
    high_frequency_factor: float = 4.0,
) -> ScaleVector:
    """LLaMA-3.1's scaling (`llama3` in Hugging Face; Meta's `apply_scaling`).

    With `r_i = L theta_i / 2 pi` turns over the original context, `f_i` is 1 above `high_frequency_factor`
    turns, s below `low_frequency_factor`, and between them `1/f_i = (1 - m)/s + m` with
    `m = (r_i - low)/(high - low)`.

    Args:
        theta: `[D/2]`, frequencies before scaling, radians per position.
        extension: extension factor s, at least 1.
        original: original context L, tokens.
        low_frequency_factor: turns below which a pair is interpolated.
        high_frequency_factor: turns above which a pair is kept; above `low_frequency_factor`.

    Returns:
        Factors `[D/2]`.

    Raises:
        InputError: if an argument is out of range.
    """
    _check_extension(extension)
    _check_original(original)
    if not 0 < low_frequency_factor < high_frequency_factor:
        raise InputError(
            f"rope.low_freq_factor is {low_frequency_factor} and rope.high_freq_factor"
            f" {high_frequency_factor}: both must be positive, the first below the second (LLaMA: 1, 4)"
        )
    turns = original * np.asarray(theta, np.float64) / (2 * math.pi)
    keep = np.clip((turns - low_frequency_factor) / (high_frequency_factor - low_frequency_factor), 0, 1)
    return ScaleVector.create(1 / ((1 - keep) / extension + keep))


def explicit(
    factors: ArrayLike, head_dim: int, layers: int | None = None, attention_factor: float = 1.0
) -> ScaleVector:
    """A scale vector that is given as numbers, for the whole model or per layer.

    LongRoPE's searched factors (arXiv 2402.13753; `longrope` in Hugging Face) are such a list.

    Args:
        factors: `[D/2]`, or `[layers, D/2]` when `layers` is given.
        head_dim: head dimension D, even.
        layers: number of layers of the model, for one row per layer; None allows a single vector only.
        attention_factor: on cos and sin; see `longrope_attention_factor`.

    Returns:
        The scale vector.

    Raises:
        InputError: naming `rope.factors` or `rope.attention_factor`, with the offending entry and the fix.
    """
    _check_head_dim(head_dim)
    try:
        values = np.asarray(factors, np.float64)
    except (TypeError, ValueError):
        raise InputError(
            "rope.factors is not an array of numbers: give one number per pair, in rows of equal length"
        ) from None
    pairs = head_dim // 2
    shapes = [(pairs,)] if layers is None else [(pairs,), (layers, pairs)]
    if values.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise InputError(f"rope.factors has shape {list(values.shape)}: a head dimension of {head_dim} needs {wanted}")
    with np.errstate(over="ignore"):  # becomes infinite, which is reported below
        values = values.astype(np.float32)
    unusable = ~(np.isfinite(values) & (values > 0))
    if unusable.any():
        where = np.argwhere(unusable)[0].tolist()
        raise InputError(f"rope.factors{where} is {values[tuple(where)]}: every factor must be a finite number above 0")
    if not (math.isfinite(attention_factor) and attention_factor > 0):
        raise InputError(f"rope.attention_factor is {attention_factor}: it must be a finite number above 0")
    return ScaleVector.create(values, attention_factor)


def longrope_attention_factor(extension: float, original: int) -> float:
    """LongRoPE's factor on cos and sin: `sqrt(1 + ln s / ln L)`.

    arXiv 2402.13753; `longrope` in Hugging Face.

    Args:
        extension: extension factor s = L'/L, at least 1.
        original: original context L, tokens, at least 2.

    Returns:
        The attention factor; 1 for s = 1.

    Raises:
        InputError: if an argument is out of range.
    """
    _check_extension(extension)
    _check_original(original)
    return math.sqrt(1 + math.log(extension) / math.log(original))


def compose(first: ScaleVector, second: ScaleVector) -> ScaleVector:
    """One extension on top of another: frequencies divide by both factors, cos and sin multiply by both.

    Args:
        first: what a model's own config carries.
        second: an extension relative to that. Either may be per layer.

    Returns:
        The scale vector relative to the frequencies before both.
    """
    return ScaleVector.create(first.factors * second.factors, first.attention_factor * second.attention_factor)


def _check_head_dim(head_dim: int) -> None:
    if head_dim < 2 or head_dim % 2:
        raise InputError(
            f"rope.head_dim is {head_dim}: rotary embedding turns pairs, so it must be a positive even number"
        )


def _check_extension(extension: float) -> None:
    if not (math.isfinite(extension) and extension >= 1):
        raise InputError(
            f"rope.extension is {extension}: it is the extended context over the original one, so it must be"
            " finite and at least 1"
        )


def _check_original(original: int) -> None:
    if original < 2:
        raise InputError(f"context.original is {original}: give the context that the model was trained with, in tokens")


def _check_betas(beta_fast: float, beta_slow: float) -> None:
    if not 0 < beta_slow < beta_fast:
        raise InputError(
            f"rope.beta_slow is {beta_slow} and rope.beta_fast {beta_fast}: both must be positive,"
            " the first below the second (YaRN uses 1 and 32)"
        )


def _keep_by_pair(base, head_dim, original, beta_fast, beta_slow, truncate) -> np.ndarray:
    """YaRN's g in Hugging Face's form, `[D/2]` from 1 (keep) to 0 (interpolate)."""
    if not base > 1:
        raise InputError(f"rope.base is {base}: it must be above 1 (LLaMA2 uses 10000)")
    _check_betas(beta_fast, beta_slow)

    def pair_with(turns: float) -> float:
        return head_dim * math.log(original / (2 * math.pi * turns)) / (2 * math.log(base))

    low, high = pair_with(beta_fast), pair_with(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    # d - 1 and not d/2 - 1, and the 0.001, are Hugging Face's; served models were tuned with them.
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    return 1 - np.clip((np.arange(head_dim // 2) - low) / (high - low), 0, 1)
