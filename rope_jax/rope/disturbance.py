"""The disturbance: how far an extension moves the rotary angle distribution (arXiv 2410.01490, Eq. 8)."""

from __future__ import annotations

import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np

from rope_jax.errors import InputError
from rope_jax.rope.angles import angle_counts, extended
from rope_jax.rope.turns import Turns

PRETRAINED_TO_EXTENDED = "pretrained_to_extended"
EXTENDED_TO_PRETRAINED = "extended_to_pretrained"
JENSEN_SHANNON = "jensen_shannon"
DISTANCES = (PRETRAINED_TO_EXTENDED, EXTENDED_TO_PRETRAINED, JENSEN_SHANNON)

# What the authors add to each count, so that an empty interval has a logarithm.
PSEUDO_COUNT = float(np.finfo(np.float16).tiny)


def divergence(counts: jax.Array, reference: jax.Array, pseudo_count: float | jax.Array) -> jax.Array:
    """Kullback-Leibler divergence `sum_k p_k ln(p_k / q_k)` between two histograms.

    The pseudo-count is added to each count and the shares are not renormalised, as the authors do.

    Args:
        counts: int32 `[b]`, the histogram of p.
        reference: int32 `[b]`, the histogram of q.
        pseudo_count: float32 scalar, positive.

    Returns:
        float32 scalar, nats.
    """
    pseudo_count = jnp.asarray(pseudo_count, jnp.float32)
    p = (counts.astype(jnp.float32) + pseudo_count) / counts.sum().astype(jnp.float32)
    q = (reference.astype(jnp.float32) + pseudo_count) / reference.sum().astype(jnp.float32)
    return jnp.sum(p * jnp.log(p / q))


def jensen_shannon(counts: jax.Array, reference: jax.Array) -> jax.Array:
    """Jensen-Shannon divergence, the mean divergence of two histograms from their mixture (Lin, 1991).

    Bounded by ln 2 and symmetric. It needs no pseudo-count, because the mixture is empty only where both are.

    Args:
        counts: int32 `[b]`, the histogram of p.
        reference: int32 `[b]`, the histogram of q.

    Returns:
        float32 scalar, nats.
    """
    p = counts.astype(jnp.float32) / counts.sum().astype(jnp.float32)
    q = reference.astype(jnp.float32) / reference.sum().astype(jnp.float32)

    def from_mixture(share):
        ratio = jnp.where(share > 0, 2 * share / jnp.where(share > 0, p + q, 1), 1)
        return jnp.sum(share * jnp.log(ratio))

    return (from_mixture(p) + from_mixture(q)) / 2


def distance_between(
    pretrained: jax.Array, moved: jax.Array, distance: str, pseudo_count: float | jax.Array
) -> jax.Array:
    """The chosen distance between the histograms of a pair before and after extension.

    Args:
        pretrained: int32 `[b]`, at `f = 1, n = L`.
        moved: int32 `[b]`, at the extended `f, n = L'`.
        distance: one of `DISTANCES`; static.
        pseudo_count: see `divergence`.

    Returns:
        float32 scalar, nats.

    Raises:
        InputError: if `distance` is not one of `DISTANCES`.
    """
    match distance:
        case "pretrained_to_extended":
            return divergence(pretrained, moved, pseudo_count)
        case "extended_to_pretrained":
            return divergence(moved, pretrained, pseudo_count)
        case "jensen_shannon":
            return jensen_shannon(pretrained, moved)
    raise InputError(f"disturbance.distance is {distance!r}: use one of {', '.join(DISTANCES)}")


def pair_disturbance(
    frequency: jax.Array | Turns,
    factor: jax.Array,
    original: int | jax.Array,
    target: int | jax.Array,
    intervals: int,
    distance: str = PRETRAINED_TO_EXTENDED,
    pseudo_count: float | jax.Array = PSEUDO_COUNT,
) -> jax.Array:
    """Disturbance of one frequency pair; see `disturbance`.

    Args:
        frequency: scalar theta_i: float32, radians per position, or `Turns` per position.
        factor: float32 scalar f_i.
        original: pre-training context L, tokens.
        target: extended context L', tokens.
        intervals: number b of intervals; static.
        distance: one of `DISTANCES`; static.
        pseudo_count: float32 scalar, positive.

    Returns:
        float32 scalar, nats.

    Raises:
        InputError: if `distance` is not one of `DISTANCES`.
    """
    pretrained = angle_counts(frequency, original, intervals)
    moved = angle_counts(extended(frequency, factor), target, intervals)
    return distance_between(pretrained, moved, distance, pseudo_count)


@functools.partial(jax.jit, static_argnames=("intervals", "distance"))
def disturbance(
    theta: jax.Array | Turns,
    factors: jax.Array,
    original: int | jax.Array,
    target: int | jax.Array,
    intervals: int,
    distance: str = PRETRAINED_TO_EXTENDED,
    pseudo_count: float | jax.Array = PSEUDO_COUNT,
) -> jax.Array:
    """Disturbance D_i of each pair: the divergence between its angles before and after extension.

    With `P_L` the histogram at `f = 1, n = L` and `P_L'` the one at the extended `f, n = L'`
    (arXiv 2410.01490, Eq. 8), summed over the b intervals. The figure the paper reports is the mean over
    pairs, times 1000.

    The printed equation and the published numbers disagree. `KL(P_L || P_L')`, here
    `"pretrained_to_extended"`, reproduces Table 3 and converges as the pseudo-count goes to 0; it is the
    default. `KL(P_L' || P_L)`, as printed and here `"extended_to_pretrained"`, grows without bound as the
    pseudo-count goes to 0, because an extended angle can fall where no pre-training angle did: position
    interpolation at 8k costs 185e-3, 213e-3 and 465e-3 at pseudo-counts 6.1e-5, 1e-5 and 1e-12. Compare its
    values only at one pseudo-count.

    To compare candidates, `jax.vmap` over `factors`: the pre-training histogram is then counted once.

    Args:
        theta: `[D/2]`, the frequencies of the model that is extended: float32, radians per position, for the
            authors' roundings, or `Turns` per position for exact angles and a cost that does not grow with length.
        factors: float32 `[D/2]`, scale factors f relative to `theta`.
        original: pre-training context L, tokens.
        target: extended context L', tokens.
        intervals: number b of equal intervals of [0, 2 pi); static.
        distance: one of `DISTANCES`; static.
        pseudo_count: added to each count; positive.

    Returns:
        float32 `[D/2]`, nats.

    Raises:
        InputError: if `distance` is not one of `DISTANCES`.
    """

    def pair(frequency, factor):
        return pair_disturbance(frequency, factor, original, target, intervals, distance, pseudo_count)

    return jax.vmap(pair)(theta, factors)


def check_measurement(
    original: int, target: int, intervals: int, distance: str, pseudo_count: float, longest: int = 2**24
) -> None:
    """Rejects, on the host and before any compilation, a measurement that could not mean anything.

    Args:
        original: pre-training context L, tokens.
        target: extended context L', tokens.
        intervals: number b of intervals.
        distance: one of `DISTANCES`.
        pseudo_count: added to each count.
        longest: most positions that the arithmetic can tell apart; see `longest_context`.

    Raises:
        InputError: naming the config field and the fix.
    """
    original = whole("context.original", original)
    target = whole("context.target", target)
    intervals = whole("angles.intervals", intervals)
    if original < 1:
        raise InputError(f"context.original is {original}: give the context that the model was trained with, in tokens")
    if target <= original:
        raise InputError(
            f"context.target is {target}, not longer than context.original ({original}): nothing is extended;"
            f" set context.target above {original}, for example {2 * original}"
        )
    if target > longest:
        raise InputError(
            f"context.target is {target}: {'float32 skips positions above 2^24' if longest == 2**24 else 'too long'};"
            f" set it to {longest} or less"
        )
    if intervals < 2:
        raise InputError(f"angles.intervals is {intervals}: at least 2 are needed (the paper uses 360)")
    if distance not in DISTANCES:
        raise InputError(f"disturbance.distance is {distance!r}: use one of {', '.join(DISTANCES)}")
    # Divided by a context length, a smaller one would underflow in float32 and its logarithm be infinite.
    if not (math.isfinite(pseudo_count) and pseudo_count >= 1e-30):
        raise InputError(
            f"disturbance.pseudo_count is {pseudo_count}: use a finite number of at least 1e-30"
            f" (the authors use {PSEUDO_COUNT:.1e})"
        )


def longest_context(theta: jax.Array | Turns) -> int:
    """Most positions that can be counted.

    Args:
        theta: frequencies, whose type is that of the arithmetic.

    Returns:
        2^24 in float32, 2^31 - 1 in exact turns.
    """
    return 2**31 - 1 if isinstance(theta, Turns) else 2**24


def whole(field: str, value: int) -> int:
    """An integer config field as a Python int.

    Args:
        field: the field's name, for the message.
        value: anything that is an integer (Python or NumPy).

    Returns:
        The integer.

    Raises:
        InputError: if `value` is not an integer.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise InputError(f"{field} is {value!r}: it must be a whole number") from None
