"""How far a disturbance is an accident of where the intervals begin."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from rope_jax.rope.arrays import AnyArray
from rope_jax.rope.disturbance import distance_between
from rope_jax.rope.exact.counting import interval_counts
from rope_jax.rope.exact.turns import Turns, divide, exact_turns
from rope_jax.rope.measure import Measure


def noise_floor(
    theta: Float32[AnyArray, " pairs"] | Turns, candidates: Float[AnyArray, "candidates pairs"], measure: Measure
) -> Float32[Array, " pairs"]:
    """Largest change of a pair's disturbance, nats, among candidates when the grid shifts by half an interval.

    A disturbance is estimated from how many angles fall between edges, and the edges could be anywhere. Shifting them
    changes no distribution, so what it does to the estimate is the estimate's error. A margin of a selection below it
    says how samples fall into intervals, not what a model would notice. Random multinomial samples would give a floor
    far too high, because the angles of a pair are much more regular; windows that start elsewhere have other
    distributions for pairs that do not complete many periods. The frequencies are not traced.
    """
    return _noise_floor(exact_turns(theta).roughly(), jnp.asarray(candidates, jnp.float32), measure)


@jax.jit
def _noise_floor(theta, candidates, measure):
    def pair(frequency, factors):
        def counts(step, length):
            # One count on a grid twice as fine holds both positions of the grid.
            halves = interval_counts(step, length, 2 * measure.intervals)
            shifted = jnp.roll(halves, -1)
            return halves.reshape(-1, 2).sum(axis=1), shifted.reshape(-1, 2).sum(axis=1)

        before = counts(frequency, measure.original)

        def change(factor):
            after = counts(divide(frequency, factor), measure.target)
            here, there = (distance_between(p, q, measure) for p, q in zip(before, after))
            return jnp.abs(here - there)

        return jax.vmap(change)(factors).max()

    return jax.vmap(pair)(theta, candidates.T)
