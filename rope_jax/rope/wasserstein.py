"""The circular Wasserstein distance between rotary angles: no intervals and no pseudo-count."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from rope_jax.rope.angles import extended
from rope_jax.rope.arrays import AnyArray
from rope_jax.rope.exact.turns import Turns, angle


@functools.partial(jax.jit, static_argnames=("original", "target"))
def wasserstein(
    theta: Float32[AnyArray, " pairs"] | Turns, factors: Float32[AnyArray, " pairs"], original: int, target: int
) -> Float32[Array, " pairs"]:
    """Circular Wasserstein distance of each pair's angles before and after extension, radians.

    Memory grows with `target`; both contexts are static.
    """

    def pair(frequency_and_factor):
        frequency, factor = frequency_and_factor
        return circular_wasserstein(_turns(frequency, original), _turns(extended(frequency, factor), target))

    return jax.lax.map(pair, (theta, factors))


def circular_wasserstein(first: Float32[AnyArray, " n"], second: Float32[AnyArray, " m"]) -> Float32[Array, ""]:
    """Mean angle by which one set of angles, in turns, must be moved along the circle to become the other.

    On a circle this is the integral of `|F - G - c|`, with F and G the shares of either set up to an angle and c
    the median of `F - G` over the circle (Rabin, Delon, Gousseau, "Transportation distances on the circle", 2011).

    Returns:
        The distance, radians, from 0 to pi / 2.
    """
    turns = jnp.concatenate([first, second])
    jumps = jnp.concatenate([jnp.full(first.shape, 1 / first.size), jnp.full(second.shape, -1 / second.size)])
    turns, jumps = jax.lax.sort((turns, jumps.astype(jnp.float32)), num_keys=1)
    difference = jnp.cumsum(jumps)
    # Between neighbouring angles F - G is constant; the last stretch passes through 0 to the first angle.
    lengths = jnp.diff(turns, append=1 + turns[:1])
    ordered, weights = jax.lax.sort((difference, lengths), num_keys=1)
    median = ordered[jnp.argmax(jnp.cumsum(weights) >= 0.5)]
    return 2 * np.pi * jnp.sum(lengths * jnp.abs(difference - median))


def _turns(frequency, length):
    positions = jnp.arange(length)
    if isinstance(frequency, Turns):
        return angle(frequency, positions).astype(jnp.float32) * jnp.float32(2.0**-32)
    full = jnp.float32(2 * np.pi)
    return jax.lax.rem(positions.astype(jnp.float32) * frequency, full) / full
