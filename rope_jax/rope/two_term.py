"""What an extension does to distances: the familiar ones that it changes, and the angles that it brings in.

A histogram of angles does not say at which distance an angle occurs. Attention reads the angle between two positions,
`Delta theta_i`, so two costs are counted over distances Delta instead of positions:

    A_i(f) = sum_{Delta < L} p(Delta) (1 - cos(Delta theta_i (1 - 1 / f)))     familiar distances that look different
    B_i(f) = sum_{Delta < L'} p'(Delta) (1 - cos(e_i(Delta theta_i / f)))      angles that pre-training never reached

e_i is how far an angle lies, on the circle, from the arc `[0, L theta_i]` that pre-training swept; 0 for a pair that
completed a period. Fast pairs are then kept without a threshold, since B_i is 0, slow ones are interpolated, and a
ramp lies between them.

Weights are linear within bins of distances, and both sums have a cost that does not grow with the length. A sum of
cosines over many radians is a Dirichlet kernel. A sum over few radians of something positive and smooth is an integral,
by the midpoint rule of Euler and Maclaurin, which loses no digits where the cosine is near 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from rope_jax.rope.arrays import AnyArray
from rope_jax.rope.distances import DistanceWeights

_NODES, _WEIGHTS = (x.astype(np.float32) for x in np.polynomial.legendre.leggauss(16))
# Of a bin that is integrated: 16 nodes resolve a cosine over as many radians to 1e-7, and a step as long leaves 1e-7.
_FEW_RADIANS, _SHORT_STEP = 8.0, 0.1


@jax.jit
def changed_distances(
    theta: Float32[AnyArray, " pairs"], factors: Float32[AnyArray, " pairs"], weights: DistanceWeights
) -> Float32[Array, " pairs"]:
    """A_i: how much familiar distances, those below the original context, change: from 0 (not at all) to 2.

    Frequencies are those before extension, radians per position; factors are at least 1.
    """
    return jax.vmap(pair_changed, in_axes=(0, 0, None))(theta, factors, weights)


@jax.jit
def unseen_angles(
    theta: Float32[AnyArray, " pairs"],
    factors: Float32[AnyArray, " pairs"],
    original: int | Array,
    weights: DistanceWeights,
) -> Float32[Array, " pairs"]:
    """B_i: how far the angles of distances below the extended context lie from those of pre-training.

    From 0 (among them) to 2. Arguments are as for `changed_distances`; `original` is the pre-training context, tokens.
    """
    return jax.vmap(pair_unseen, in_axes=(0, 0, None, None))(theta, factors, original, weights)


def pair_changed(theta, factor, weights: DistanceWeights) -> Float32[Array, ""]:
    """A of one pair."""
    step = theta * ((factor - 1) / factor)  # 1 - 1 / factor without its cancellation near 1

    def over_bin(start, size, level, slope):
        few = (step * size < _FEW_RADIANS) & (step < _SHORT_STEP)
        integral = _smooth_sum(lambda x: _one_minus_cos(step * (start + x)), (0.0, size, level, slope), step)
        many = jnp.where(few, 1.0, step)  # no division by 0 where the other branch is taken
        # sum_{k < n} cos(c + j many) and sum j cos(c + j many), with j = k - (n - 1) / 2 and D = sin(n x) / sin(x).
        half, middle = many / 2, (size - 1) / 2
        dirichlet = jnp.sin(size * half) / jnp.sin(half)
        slanted = (size * jnp.cos(size * half) - dirichlet * jnp.cos(half)) / (2 * jnp.sin(half))
        centre = many * (start + middle)
        cosines = (level + slope * middle) * jnp.cos(centre) * dirichlet + slope * jnp.sin(centre) * slanted
        return jnp.where(few, integral, (level + slope * middle) * size - cosines)

    return jnp.sum(jax.vmap(over_bin)(weights.start, weights.size, weights.level, weights.slope))


def pair_unseen(theta, factor, original, weights: DistanceWeights) -> Float32[Array, ""]:
    """B of one pair."""
    step = theta / factor
    arc = jnp.minimum(theta * original, 2 * np.pi)
    gap = 2 * np.pi - arc
    end = jnp.max(weights.start + weights.size)
    rounds = jnp.where(gap > 0, jnp.floor(step * end / (2 * np.pi)) + 1, 0).astype(jnp.int32)

    def add_round(number, total):
        # Of this round of the circle: past the end of the arc, and nearer to its beginning.
        begin = 2 * np.pi * number / step
        cuts = jnp.ceil(begin + jnp.stack([arc, arc + gap / 2, jnp.asarray(2 * np.pi, jnp.float32)]) / step)

        def over_bin(start, size, level, slope):
            def part(first, last, away):
                first, last = jnp.clip(first, start, start + size), jnp.clip(last, start, start + size)
                piece = (first, last - first, level + slope * (first - start), slope)
                return _smooth_sum(lambda x: _one_minus_cos(away(step * (x - begin))), piece, step)

            past = part(cuts[0], cuts[1], lambda angle: angle - arc)
            return past + part(cuts[1], cuts[2], lambda angle: 2 * np.pi - angle)

        return total + jnp.sum(jax.vmap(over_bin)(weights.start, weights.size, weights.level, weights.slope))

    return jax.lax.fori_loop(0, rounds, add_round, jnp.float32(0))


def _one_minus_cos(x):
    return 2 * jnp.sin(x / 2) ** 2


def _smooth_sum(values, piece, step):
    """Sum of weight times `values` over the whole numbers of a piece, in which `values` spans few radians.

    The sum of g over a ... b - 1 is its integral from a - 1/2 to b - 1/2 less `(g'(b - 1/2) - g'(a - 1/2)) / 24`, up to
    the fourth power of the step.
    """
    start, size, level, slope = piece

    def weighted(x):
        return (level + slope * (x - start)) * values(x)

    low, high = start - 0.5, start + size - 0.5
    integral = jnp.sum(_WEIGHTS * jax.vmap(weighted)(low + size * (_NODES + 1) / 2)) * size / 2
    slopes = jax.grad(weighted)(high) - jax.grad(weighted)(low)
    return jnp.where(size > 0, integral - slopes / 24, 0.0)
