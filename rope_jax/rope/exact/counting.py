"""How many of the angles 0, a, 2a, ... (n - 1) a lie below an edge of the circle, in O(log n) steps.

The angles of one pair are an arithmetic progression on a circle. With the step a and the edges in units of 1/M of a
turn, `[(m a mod M) < X] = floor((m a + M) / M) - floor((m a + M - X) / M)`, so a count is a difference of two sums
`sum_m floor((a m + b) / M)`, which an algorithm like Euclid's finds in as many steps as the continued fraction of
a / M has terms up to n (Graham, Knuth, Patashnik, Concrete Mathematics, section 3.5).

A quotient is guessed in float32 and put right by its remainder, which wrap-around arithmetic knows although the
dividend does not fit. Turns have 48 bits in two uint32 limbs. One limb of 30 bits does for a dense search, at a third
of the cost; both share the recursion.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32

from rope_jax.rope.exact.turns import Turns, multiply

# Up to this length 30 bits put an angle at most 2^15 * 2^-31 turns = 1e-4 rad off.
ROUGH = 2**15
# Up to this length float32 guesses a quotient to within SLACK: 2^17 * 3 roundings of 2^-24 are 0.024.
GUESSED = 2**17
SLACK = 1 / 32


def interval_counts(step: Turns, length: int | Int[Array, ""], intervals: int) -> Int32[Array, " intervals"]:
    """Histogram of the angles of one pair at n < 2^31 positions; the cost does not grow with n."""
    # An angle is below an edge when its units are below the edge's, rounded up.
    units = [-(-k * 2**64 // intervals) for k in range(intervals)]
    high, low = (np.array([unit >> shift & 0xFFFFFFFF for unit in units], np.uint32) for shift in (32, 0))
    below = count_below(step, length, Turns(high, low))
    return jnp.diff(below, append=jnp.asarray(length, jnp.int32)[None])


def count_below(step: Turns, length: int | Int[Array, ""], edges: Turns) -> Int32[Array, " edges"]:
    """How many of the angles of one pair at n < 2^31 positions are below each edge, a fraction of a turn.

    Step and edges are rounded to 2^-48 turns; to 2^-30 if the step is `rough` and n is at most `ROUGH`.
    """
    length = jnp.asarray(length, jnp.int32)
    if step.rough:
        return jax.lax.cond(length <= ROUGH, _count_rough, _count_exact, step, length, edges)
    return _count_exact(step, length, edges)


def _count_exact(step, length, edges):
    near, far = (functools.partial(_count_long, again=again) for again in (False, True))
    return jax.lax.cond(length <= GUESSED, near, far, step, length, edges)


def _count_rough(step, length, edges):
    def rounded(turns):  # up, so that an edge stays above what was below it
        return (turns.high >> 2) + ((turns.high & 3 != 0) | (turns.low != 0)).astype(jnp.uint32)

    nearest = (step.high >> 2) + (step.high >> 1 & 1)
    modulus = jnp.uint32(2**30)
    return _count(nearest, modulus, rounded(edges), length, quotient=_short_quotient, subtract=lambda a, b: a - b)


def _count_long(step, length, edges, again):
    def rounded(turns):
        up = ((turns.low & 0xFFFF) != 0).astype(jnp.uint32)
        return _add(_drop_16(turns.high, turns.low), (jnp.zeros_like(up), up))

    nearest = _add(_drop_16(step.high, step.low), (jnp.uint32(0), step.low >> 15 & 1))
    modulus = (jnp.uint32(2**16), jnp.uint32(0))
    quotient = functools.partial(_long_quotient, again=again)
    return _count(nearest, modulus, rounded(edges), length, quotient=quotient, subtract=_subtract)


def _count(step, modulus, edges, length, *, quotient: Callable, subtract: Callable):
    """The recursion, for integers of one or two limbs.

    `quotient(a, n, b, m)` gives `(a n + b) // m` as uint32 and `(a n + b) % m`.
    """
    nothing = jax.tree.map(jnp.zeros_like, modulus)
    # A first lane sums floor((a m + M) / M), from which every other is subtracted.
    offset = jax.tree.map(
        lambda zero, rest: jnp.concatenate([zero[None], rest]),
        nothing,
        subtract(jax.tree.map(lambda x: x[None], modulus), edges),
    )
    lanes = jax.tree.leaves(offset)[0].shape[0]
    terms = jnp.full(lanes, length, jnp.uint32)
    total = jnp.zeros(lanes, jnp.uint32).at[0].set(length.astype(jnp.uint32))
    # An edge at 0 has M - 0 as its offset, which is one more than the recursion takes: nothing lies below it.
    at_zero = jax.tree.reduce(jnp.logical_and, jax.tree.map(lambda x, m: x == m, offset, modulus))
    offset = jax.tree.map(lambda x: jnp.where(at_zero, jnp.zeros_like(x), x), offset)

    def unfinished(state):
        return jnp.any(state[2] >= 2)  # a single term is floor(b / m) = 0

    def reduce(state):
        # sum_{i < n} floor((a i + b) / m) with a, b < m counts lattice points under a line; seen from the other
        # axis these are points under a line of slope m / a, of which there are as many columns as the line is high.
        a, m, n, b, total = state
        columns, rest = quotient(a, n, b, m)
        whole, a_next = quotient(a, jnp.uint32(0), m, a)
        above, b_next = quotient(a, jnp.uint32(0), rest, a)
        triangle = (columns >> 1) * ((columns - 1) | 1)  # columns (columns - 1) / 2, halving whichever is even
        # Everything but n is only needed, and only right, modulo 2^32.
        return a_next, a, columns, b_next, total + triangle * whole + columns * above

    total = jax.lax.while_loop(unfinished, reduce, (step, modulus, terms, offset, total))[-1]
    below = jnp.where(at_zero, 0, total[0] - total)
    return below[1:].astype(jnp.int32)


def _short_quotient(a, n, b, m):
    """For m up to 2^30 and a quotient up to `ROUGH`: guessed too low by one at most."""
    dividend = a.astype(jnp.float32) * n.astype(jnp.float32) + b.astype(jnp.float32)
    guess = jnp.maximum(dividend * (1 / m.astype(jnp.float32)) - SLACK, 0).astype(jnp.uint32)
    rest = a * n + b - guess * m
    low = rest >= m
    return jnp.where(low, guess + 1, guess), jnp.where(low, rest - m, rest)


def _long_quotient(a, n, b, m, again):
    """For m up to 2^48: guessed too low by one at most up to `GUESSED`; up to 2^31 if guessed again."""
    inverse = 1 / _float(m)
    dividend = _float(a) * n.astype(jnp.float32) + _float(b)
    guess = jnp.maximum(dividend * inverse - SLACK, 0).astype(jnp.uint32)
    rest = _subtract(_add(_times(a, n), b), _times(m, guess))
    if again:
        negative = rest[0] >> 31 != 0
        size = _where(negative, _subtract((0, 0), rest), rest)
        more = (_float(size) * inverse).astype(jnp.uint32)
        # Rounded down, so that what is left is not negative.
        more = jnp.where(negative, jnp.uint32(0) - more - 2, jnp.where(more > 0, more - 1, more))
        guess = guess + more
        rest = _subtract(_add(_times(a, n), b), _times(m, guess))
        for _ in range(2):
            guess, rest = _raise(guess, rest, m)
    return _raise(guess, rest, m)


def _raise(guess, rest, m):
    low = (rest[0] > m[0]) | ((rest[0] == m[0]) & (rest[1] >= m[1]))
    return jnp.where(low, guess + 1, guess), _where(low, _subtract(rest, m), rest)


def _where(condition, x, y):
    return jnp.where(condition, x[0], y[0]), jnp.where(condition, x[1], y[1])


def _drop_16(high, low):
    return high >> 16, (high << 16) | (low >> 16)


def _float(x):
    return x[0].astype(jnp.float32) * jnp.float32(2.0**32) + x[1].astype(jnp.float32)


def _times(x, n):
    high, low = multiply(x[1], n)
    return high + x[0] * n, low


def _add(x, y):
    low = x[1] + y[1]
    return x[0] + y[0] + (low < y[1]).astype(jnp.uint32), low


def _subtract(x, y):
    return x[0] - y[0] - (x[1] < y[1]).astype(jnp.uint32), x[1] - y[1]
