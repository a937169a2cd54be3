"""A selection by what the model has seen, and not by how samples fall into intervals.

A pair that completed a turn in pre-training has met every angle, up to the spacing of its positions; one that did
not has met an arc. Extension may take the second kind past the end of its arc. The *unseen mass* of a candidate is
the share of its angles that are farther than a resolution from every angle of pre-training, and a pair leaves
extrapolation only where another candidate has less of it.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from rope_jax.errors import InputError
from rope_jax.rope.counting import count_below
from rope_jax.rope.disturbance import PRETRAINED_TO_EXTENDED, PSEUDO_COUNT, check_measurement, longest_context
from rope_jax.rope.solve import Selection, check_candidates, choose, exact_turns, gain, measure, noise_floor
from rope_jax.rope.turns import Turns, divide

RESOLUTION = 0.07


def select_by_unseen(
    theta: jax.Array | Turns,
    candidates: jax.Array,
    original: int,
    target: int,
    intervals: int,
    resolution: float = RESOLUTION,
) -> Selection:
    """Each pair leaves row 0 for the row with the least unseen mass, if that is less than row 0's.

    Ties keep row 0, and between other rows the first. For candidates 1 and s this interpolates the pairs that
    completed less than about one turn in pre-training, and no other. Intervals play no part in the choice: they
    are for the disturbance that the result reports.

    Args:
        theta: `[D/2]`, the frequencies of the model that is extended: float32 radians or exact `Turns` per position.
        candidates: float32 `[C, D/2]` scale factors, C at least 2.
        original: pre-training context L, tokens.
        target: extended context L', tokens, above L.
        intervals: number b of intervals of [0, 2 pi), at least 2.
        resolution: delta, radians: how near an angle must be to one that was seen; see `unseen_mass`.

    Returns:
        The selection. Its disturbance, margin and noise floor are in nats, as for the paper's rule, and its
        thresholds are shares of unseen mass.

    Raises:
        InputError: naming the config field that cannot be used, before anything is compiled.
    """
    check_measurement(original, target, intervals, PRETRAINED_TO_EXTENDED, PSEUDO_COUNT, longest_context(theta))
    check_candidates(theta, candidates)
    check_resolution(resolution)
    turns = exact_turns(theta)
    unseen = unseen_mass(turns, candidates, original, target, resolution)
    measured = measure(theta, candidates, original, target, intervals)
    floor = noise_floor(turns, candidates, original, target, intervals)
    return choose(candidates, measured, gain(unseen) > 0, floor, unseen)


@jax.jit
def unseen_mass(theta: Turns, candidates: jax.Array, original: int, target: int, resolution: float) -> jax.Array:
    """Share of extended angles that are farther than the resolution from every angle of pre-training.

    The resolution is not the same for all pairs: at least one step theta_i, because a model interpolates between
    neighbouring positions, however far a step turns; and at most a quarter of the arc that pre-training swept,
    because a pair that turns slowly is told apart by less. Angles seen one step apart then cover the whole arc
    between the first and the last, so what is unseen is the rest of the circle less a resolution at both ends,
    and its mass a count of angles between two edges.

    Args:
        theta: `[D/2]` turns per position.
        candidates: float32 `[C, D/2]` scale factors.
        original: pre-training context L, tokens.
        target: extended context L', tokens.
        resolution: delta, radians.

    Returns:
        float32 `[C, D/2]`, from 0 to 1.
    """
    original, target = jnp.asarray(original, jnp.int32), jnp.asarray(target, jnp.int32)

    def pair(frequency, factors):
        step = frequency.radians / (2 * np.pi)
        arc = step * (original - 1).astype(jnp.float32)
        width = jnp.minimum(jnp.maximum(resolution / (2 * np.pi), step), arc / 4)
        # In float32 an edge is off by 1e-7 turns, which a resolution need not notice.
        first, last = arc + width, 1 - width

        def mass(factor):
            edges = (jnp.stack([first, last]) * jnp.float32(2.0**32)).astype(jnp.uint32)
            below = count_below(divide(frequency, factor), target, Turns(edges, jnp.zeros_like(edges)))
            share = (below[1] - below[0]).astype(jnp.float32) / target.astype(jnp.float32)
            return jnp.where(first < last, share, 0.0)

        return jax.vmap(mass)(factors)

    return jax.vmap(pair)(theta, jnp.asarray(candidates, jnp.float32).T).T


def check_resolution(resolution: float) -> None:
    """Rejects a resolution that is not an angle.

    Args:
        resolution: delta, radians.

    Raises:
        InputError: naming `solve.resolution` and the fix.
    """
    if not (math.isfinite(resolution) and 0 < resolution < math.pi):
        raise InputError(f"solve.resolution is {resolution}: give an angle in radians between 0 and pi, such as 0.07")
