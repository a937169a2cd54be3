"""Unseen mass: the share of extended angles that pre-training never came near.

A pair that completed a period in pre-training has met every angle, up to the spacing of its positions; one that did
not has met an arc. Extension may take the second kind past the end of its arc. This follows from what the model has
seen, not from how samples fall into intervals.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from rope_jax.rope.arrays import AnyArray
from rope_jax.rope.exact.counting import count_below
from rope_jax.rope.exact.turns import Turns, divide
from rope_jax.rope.measure import Measure


@jax.jit
def unseen_mass(
    theta: Turns, candidates: Float[AnyArray, "candidates pairs"], measure: Measure, resolution: float | Array
) -> Float32[Array, "candidates pairs"]:
    """Share, 0 to 1, of extended angles that are farther than `resolution`, radians, from every angle of pre-training.

    The resolution is not the same for all pairs: at least one step theta_i, because a model interpolates between
    neighbouring positions, however far apart their angles are; and at most a quarter of the arc that pre-training
    swept, because a slow pair is told apart by less. Angles seen one step apart then cover the whole arc between the
    first and the last, so what is unseen is the rest of the circle less a resolution at both ends, and its mass a
    count of angles between two edges.
    """
    original, target = jnp.asarray(measure.original, jnp.int32), jnp.asarray(measure.target, jnp.int32)

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
