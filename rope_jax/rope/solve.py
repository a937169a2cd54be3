"""Choosing, per frequency pair, the factor that disturbs its angles least (arXiv 2410.01490, Section 3).

A candidate is a row of factors. Row 0 is the default, extrapolation in the paper; a pair leaves it for the
best of the other rows only when that lowers the pair's disturbance by more than a threshold.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from rope_jax.errors import InputError
from rope_jax.rope.counting import interval_counts
from rope_jax.rope.disturbance import (
    PRETRAINED_TO_EXTENDED,
    PSEUDO_COUNT,
    check_measurement,
    distance_between,
    disturbance,
    longest_context,
    whole,
)
from rope_jax.rope.embedding import ScaleVector
from rope_jax.rope.turns import Turns, divide


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Selection:
    """The outcome of a selection among C candidates for D/2 pairs.

    Attributes:
        factors: float32 `[D/2]`, the chosen scale factors.
        winner: int32 `[D/2]`, the row of `candidates` that each pair took; 0 is the default.
        disturbance: float32 `[C, D/2]`, the disturbance of every candidate, nats.
        margin: float32 `[D/2]`, what the best candidate besides the winner would cost more, nats. Negative
            where the threshold, or the number of dimensions asked for, overruled the lower disturbance.
        threshold_low: float32 scalar, nats; thresholds from here up to, not including, `threshold_high` make
            the same choice.
        threshold_high: float32 scalar, nats; equal to `threshold_low` where no threshold makes this choice,
            because pairs with exactly the same gain were parted.
        noise_floor: float32 `[D/2]`, nats: how far a candidate's disturbance moves when the grid of intervals is
            turned by half an interval, the largest among the candidates; see `noise_floor`. A margin below it
            says how samples fall into intervals and not what a model would notice.
    """

    factors: jax.Array
    winner: jax.Array
    disturbance: jax.Array
    margin: jax.Array
    threshold_low: jax.Array
    threshold_high: jax.Array
    noise_floor: jax.Array

    @property
    def interpolated_dimensions(self) -> jax.Array:
        """int32 scalar: head dimensions that left the default, two per pair (the paper's n_hat)."""
        return 2 * jnp.sum(self.winner > 0, dtype=jnp.int32)

    @property
    def mean_disturbance(self) -> jax.Array:
        """float32 scalar: disturbance of the choice, mean over pairs, nats; Table 3 shows 1000 times this."""
        return jnp.take_along_axis(self.disturbance, self.winner[None], axis=0).mean()

    @property
    def scale_vector(self) -> ScaleVector:
        """The chosen factors as a scale vector, with attention factor 1."""
        return ScaleVector.create(self.factors)


def select_by_threshold(
    theta: jax.Array | Turns,
    candidates: jax.Array,
    original: int,
    target: int,
    intervals: int,
    threshold: float,
    distance: str = PRETRAINED_TO_EXTENDED,
    pseudo_count: float = PSEUDO_COUNT,
) -> Selection:
    """Each pair keeps row 0 unless another row lowers its disturbance by more than `threshold`.

    arXiv 2410.01490, Eq. 9: `f_i = s` if `D_i(1) > D_i(s) + t`, else 1. Ties keep row 0; `threshold` 0 is the
    argmin, which gives the paper's Table 3.

    Args:
        theta: `[D/2]`, the frequencies of the model that is extended: float32 radians or exact `Turns` per position.
        candidates: float32 `[C, D/2]` scale factors, C at least 2.
        original: pre-training context L, tokens.
        target: extended context L', tokens, above L.
        intervals: number b of intervals of [0, 2 pi), at least 2.
        threshold: t, nats; finite and not negative.
        distance: of the divergence; see `disturbance`.
        pseudo_count: see `disturbance`.

    Returns:
        The selection.

    Raises:
        InputError: naming the config field that cannot be used, before anything is compiled.
    """
    check_measurement(original, target, intervals, distance, pseudo_count, longest_context(theta))
    check_candidates(theta, candidates)
    check_threshold(threshold)
    setting = (original, target, intervals, distance, pseudo_count)
    measured = measure(theta, candidates, *setting)
    floor = noise_floor(exact_turns(theta), candidates, *setting)
    return choose(candidates, measured, gain(measured) > jnp.float32(threshold), floor)


def select_by_count(
    theta: jax.Array | Turns,
    candidates: jax.Array,
    original: int,
    target: int,
    intervals: int,
    n_hat: int,
    distance: str = PRETRAINED_TO_EXTENDED,
    pseudo_count: float = PSEUDO_COUNT,
) -> Selection:
    """The `n_hat / 2` pairs that gain most by it leave row 0 for the best of the other rows.

    arXiv 2410.01490, Eq. 9 with the threshold given through the number of interpolated dimensions
    (LLaMA2: 80 at 8k, 64 at 16k). Between equal gains the lower pair leaves first. Exactly `n_hat`
    dimensions leave, even where their gain is negative; then `threshold_high` is not positive.

    Args:
        theta: `[D/2]`, the frequencies of the model that is extended: float32 radians or exact `Turns` per position.
        candidates: float32 `[C, D/2]` scale factors, C at least 2.
        original: pre-training context L, tokens.
        target: extended context L', tokens, above L.
        intervals: number b of intervals of [0, 2 pi), at least 2.
        n_hat: number of head dimensions that leave row 0: even, from 0 to D.
        distance: of the divergence; see `disturbance`.
        pseudo_count: see `disturbance`.

    Returns:
        The selection; its thresholds are those that give the same choice.

    Raises:
        InputError: naming the config field that cannot be used, before anything is compiled.
    """
    check_measurement(original, target, intervals, distance, pseudo_count, longest_context(theta))
    check_candidates(theta, candidates)
    check_count(n_hat, head_dim=2 * len(theta))
    setting = (original, target, intervals, distance, pseudo_count)
    measured = measure(theta, candidates, *setting)
    floor = noise_floor(exact_turns(theta), candidates, *setting)
    rank = jnp.argsort(jnp.argsort(-gain(measured), stable=True))
    return choose(candidates, measured, rank < n_hat // 2, floor)


@functools.partial(jax.jit, static_argnames=("intervals", "distance"))
def measure(
    theta: jax.Array | Turns,
    candidates: jax.Array,
    original: int,
    target: int,
    intervals: int,
    distance: str = PRETRAINED_TO_EXTENDED,
    pseudo_count: float = PSEUDO_COUNT,
) -> jax.Array:
    """Disturbance of every candidate.

    Args:
        theta: `[D/2]`, float32 radians or exact `Turns` per position.
        candidates: float32 `[C, D/2]` scale factors.
        original: pre-training context L, tokens.
        target: extended context L', tokens.
        intervals: number b of intervals.
        distance: of the divergence; see `disturbance`.
        pseudo_count: see `disturbance`.

    Returns:
        float32 `[C, D/2]`, nats.
    """

    def candidate(factors):
        return disturbance(theta, factors, original, target, intervals, distance, pseudo_count)

    return jax.vmap(candidate)(jnp.asarray(candidates, jnp.float32))


@functools.partial(jax.jit, static_argnames=("intervals", "distance"))
def noise_floor(
    theta: Turns,
    candidates: jax.Array,
    original: int,
    target: int,
    intervals: int,
    distance: str = PRETRAINED_TO_EXTENDED,
    pseudo_count: float = PSEUDO_COUNT,
) -> jax.Array:
    """How much of a pair's disturbance is an accident of where the intervals begin.

    A disturbance is estimated from how many angles fall between edges, and the edges could be anywhere. Turning
    the grid by half an interval changes no distribution, so what it does to the estimate is its error. Random
    multinomial samples would give a floor far too high, because the angles of a pair are much more regular; and
    windows that begin elsewhere are other distributions for pairs that do not complete many turns.

    Args:
        theta: `[D/2]` turns per position.
        candidates: float32 `[C, D/2]` scale factors.
        original: pre-training context L, tokens.
        target: extended context L', tokens.
        intervals: number b of intervals.
        distance: see `disturbance`.
        pseudo_count: see `disturbance`.

    Returns:
        float32 `[D/2]`, nats: the largest change among the candidates.
    """

    def pair(frequency, factors):
        def counts(step, length):
            # One count on a grid twice as fine holds both positions of the grid.
            halves = interval_counts(step, length, 2 * intervals)
            turned = jnp.roll(halves, -1)
            return halves.reshape(-1, 2).sum(axis=1), turned.reshape(-1, 2).sum(axis=1)

        before = counts(frequency, original)

        def change(factor):
            after = counts(divide(frequency, factor), target)
            here, there = (distance_between(p, q, distance, pseudo_count) for p, q in zip(before, after))
            return jnp.abs(here - there)

        return jax.vmap(change)(factors).max()

    return jax.vmap(pair)(theta.roughly(), jnp.asarray(candidates, jnp.float32).T)


def exact_turns(theta: jax.Array | Turns) -> Turns:
    """Frequencies as turns; float32 ones as exactly what they are.

    Args:
        theta: `[D/2]`, float32 radians or `Turns` per position; not traced.

    Returns:
        Turns per position.
    """
    return theta if isinstance(theta, Turns) else Turns.create(theta)


def gain(measured: jax.Array) -> jax.Array:
    """What a pair gains by leaving row 0 for the best of the other rows.

    Args:
        measured: float32 `[C, D/2]` disturbance, nats.

    Returns:
        float32 `[D/2]`, `D_0 - min(D_1 ... D_C-1)`, nats.
    """
    return measured[0] - measured[1:].min(axis=0)


@jax.jit
def choose(
    candidates: jax.Array,
    measured: jax.Array,
    leaves: jax.Array,
    floor: jax.Array,
    cost: jax.Array | None = None,
) -> Selection:
    """Builds the selection in which the given pairs leave row 0 for the best of the other rows.

    Args:
        candidates: float32 `[C, D/2]` scale factors.
        measured: float32 `[C, D/2]` disturbance, nats.
        leaves: bool `[D/2]`, the pairs that leave row 0.
        floor: float32 `[D/2]` from `noise_floor`, nats.
        cost: float32 `[C, D/2]`, what the best row is the least of; the disturbance by default.

    Returns:
        The selection; its thresholds are in the unit of `cost`.
    """
    cost = measured if cost is None else cost
    winner = jnp.where(leaves, 1 + jnp.argmin(cost[1:], axis=0), 0).astype(jnp.int32)
    won = jnp.arange(len(measured), dtype=jnp.int32)[:, None] == winner
    chosen = jnp.where(won, measured, 0.0).sum(axis=0)
    runner_up = jnp.where(won, jnp.inf, measured).min(axis=0)
    gains = gain(cost)
    return Selection(
        factors=jnp.take_along_axis(jnp.asarray(candidates, jnp.float32), winner[None], axis=0)[0],
        winner=winner,
        disturbance=measured,
        margin=runner_up - chosen,
        threshold_low=jnp.where(leaves, -jnp.inf, gains).max(),
        threshold_high=jnp.where(leaves, gains, jnp.inf).min(),
        noise_floor=floor,
    )


def check_candidates(theta: jax.Array, candidates: jax.Array) -> None:
    """Rejects candidates that do not fit the model's frequencies.

    Args:
        theta: `[D/2]`.
        candidates: `[C, D/2]`.

    Raises:
        InputError: naming `solve.candidates` and the fix.
    """
    shape, values = np.shape(candidates), np.asarray(candidates)
    if len(shape) != 2 or shape[0] < 2 or shape[1] != len(theta):
        raise InputError(
            f"solve.candidates has shape {list(shape)}: a default row and at least one other, each of D/2 ="
            f" {len(theta)} factors, are needed"
        )
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise InputError("solve.candidates has a factor that is not a finite number above 0: correct that row")


def check_threshold(threshold: float) -> None:
    """Rejects a threshold under which pairs could leave the default for something worse.

    Args:
        threshold: t, nats.

    Raises:
        InputError: naming `solve.threshold` and the fix.
    """
    if not (math.isfinite(threshold) and threshold >= 0):
        raise InputError(f"solve.threshold is {threshold}: it must be a finite number, 0 (the argmin) or above")


def check_count(n_hat: int, head_dim: int) -> None:
    """Rejects a number of interpolated dimensions that no choice of pairs can give.

    Args:
        n_hat: number of head dimensions that leave row 0.
        head_dim: head dimension D.

    Raises:
        InputError: naming `solve.n_hat` and the fix.
    """
    n_hat = whole("solve.n_hat", n_hat)
    if n_hat % 2:
        raise InputError(f"solve.n_hat is {n_hat}: dimensions come in pairs; use {n_hat - 1} or {n_hat + 1}")
    if not 0 <= n_hat <= head_dim:
        raise InputError(f"solve.n_hat is {n_hat}: use an even number from 0 to the head dimension, {head_dim}")
