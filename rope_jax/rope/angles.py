"""The rotary angle distribution: how often each interval of [0, 2 pi) is visited (arXiv 2410.01490, Eq. 5-7).

Everything is written for one frequency pair and mapped over pairs. The type of a frequency says how its angles are
computed: float32, in radians per position, is rounded as the authors' solver and a served model round; `Turns` per
position are exact.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, Int32

from rope_jax.rope.arrays import AnyArray
from rope_jax.rope.exact.counting import interval_counts
from rope_jax.rope.exact.turns import Turns, divide


def extended(
    theta: Float32[AnyArray, "*pairs"] | Turns, factors: Float32[AnyArray, "*pairs"]
) -> Float32[AnyArray, "*pairs"] | Turns:
    """Frequencies of extended pairs, `theta_i / f_i`, of the type of `theta`; rounded once if that is float32.

    Example:
        >>> print(extended(np.float32([1, 0.5]), np.float32([1, 2])))
        [1.   0.25]
    """
    return divide(theta, factors) if isinstance(theta, Turns) else theta / factors


def interval_index(
    frequency: Float32[AnyArray, ""], positions: Int32[AnyArray, " positions"], intervals: int
) -> Int32[Array, " positions"]:
    """Interval, 0 to b - 1, of [0, 2 pi) that holds the angle `m * frequency`, in plain float32, for m below 2^24.

    Each rounding is the authors' own: the product, the remainder by the float32 nearest to 2 pi, and the
    product with `b / 2 pi`. Dividing by the interval's width instead moves angles across edges.

    The product is off by up to 1e-3 rad at m = 16k and 6e-2 rad at m = 1M, where an interval of b = 360 is
    1.7e-2 rad wide.

    Example:
        >>> print(interval_index(jnp.float32(1), jnp.arange(7), intervals=4))  # 0 to 6 rad
        [0 0 1 1 2 3 3]
    """
    angles = jax.lax.rem(positions.astype(jnp.float32) * frequency, jnp.float32(2 * np.pi))
    index = (angles * jnp.float32(intervals / (2 * np.pi))).astype(jnp.int32)
    # An angle just below 2 pi can round up to b.
    return jnp.minimum(index, intervals - 1)


@functools.partial(jax.jit, static_argnames="intervals")
def angle_counts(
    frequency: Float32[AnyArray, ""] | Turns, length: int | Int[Array, ""], intervals: int
) -> Int32[Array, " intervals"]:
    """Histogram of the rotary angles of one pair, `angle_histograms` of a scalar: `F_k(n)` of Eq. 5-7, times n.

    Float32 angles are counted one by one, exact ones in O(b log n). Memory does not grow with `length`, and a new
    length does not recompile.

    Example:
        >>> print(angle_counts(np.float32(1), 7, intervals=4))
        [2 2 1 2]
    """
    if isinstance(frequency, Turns):
        return interval_counts(frequency, length, intervals)
    chunk = 1024  # positions at a time
    frequency = jnp.asarray(frequency, jnp.float32)
    length = jnp.asarray(length, jnp.int32)

    def add_chunk(step, counts):
        positions = step * chunk + jnp.arange(chunk, dtype=jnp.int32)
        index = interval_index(frequency, positions, intervals)
        # Positions past the end point outside the histogram, where the scatter drops them.
        return counts.at[jnp.where(positions < length, index, intervals)].add(1, mode="drop")

    return jax.lax.fori_loop(0, (length + chunk - 1) // chunk, add_chunk, jnp.zeros(intervals, jnp.int32))


@functools.partial(jax.jit, static_argnames="intervals")
def angle_histograms(
    frequencies: Float32[AnyArray, " pairs"] | Turns, length: int | Int[Array, ""], intervals: int
) -> Int32[Array, "pairs intervals"]:
    """Positions `m = 0 ... n - 1` of each pair whose angle `m * frequency mod 2 pi` falls in each of b equal intervals.

    The `length` n is at most 2^24 for frequencies in radians, below 2^31 for `Turns`; `intervals` is static.

    Example:
        >>> print(angle_histograms(np.float32([1, 0.5]), 7, intervals=4))
        [[2 2 1 2]
         [4 3 0 0]]
    """
    return jax.vmap(lambda frequency: angle_counts(frequency, length, intervals))(frequencies)
