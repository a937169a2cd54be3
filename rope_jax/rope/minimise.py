"""The factor of each pair that disturbs its angles least, from a continuous range.

Nothing restricts a factor to 1 or s (arXiv 2410.01490, Eq. 9). The disturbance of a pair has a great many local
minima, some of them 1e-5 wide, so the search is dense and not by descent: a grid over [1, s], then ever finer grids
around 1, around s and around the best so far.

A lower number is no achievement by itself: a change of 1e-5 moves an angle by hundredths of a radian, which no
model can notice. Report perplexity or retrieval beside it, and the noise floor of the estimate.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Float32

from rope_jax.errors import InputError
from rope_jax.rope.angles import extended
from rope_jax.rope.arrays import AnyArray
from rope_jax.rope.disturbance import pair_shift
from rope_jax.rope.exact.turns import Turns, exact_turns
from rope_jax.rope.measure import Measure

STEPS = (2e-2, 1e-2, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4, 5e-5, 2e-5, 1e-5, 5e-6, 2e-6, 1e-6, 1e-7)


@dataclasses.dataclass(frozen=True)
class Search:
    """How densely factors are tried.

    Attributes:
        coarse: factors of the first grid, evenly over [1, s]. One more than a number with many divisors puts
            fractions such as 3/2 and 4/3 on the grid, at which angles of fast pairs repeat those of pre-training.
        steps: relative half-widths of the grids that follow, coarse to fine.
        fan: factors on either side of each centre of such a grid; many divisors help here too.
        finalists: best factors of the search that are measured again in the arithmetic of the frequencies.
    """

    coarse: int = 1261
    steps: tuple[float, ...] = STEPS
    fan: int = 30
    finalists: int = 64

    def __post_init__(self):
        for field, least in (("coarse", 2), ("fan", 1), ("finalists", 1)):
            if getattr(self, field) < least:
                raise InputError(f"`{field}` is {getattr(self, field)}: it must be at least {least}")
        if not all(math.isfinite(step) and 0 < step < 1 for step in self.steps):
            raise InputError(f"`steps` is {self.steps}: each must lie between 0 and 1")

    @property
    def candidates(self) -> int:
        """Factors tried per pair."""
        width = 3 * (2 * self.fan + 1)
        return (-(-self.coarse // width) + len(self.steps)) * width


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Minimum:
    """The outcome of a search.

    Attributes:
        factors: float32 `[D/2]`, the best scale factors found; a little below 1 or above s for some pairs.
        cost: float32 `[D/2]`, their disturbance, nats.
        ends: float32 `[2, D/2]`, the cost at factors 1 and s, of which none is below `cost`.
    """

    factors: jax.Array
    cost: jax.Array
    ends: jax.Array


def minimise(theta: Float32[AnyArray, " pairs"] | Turns, measure: Measure, search: Search = Search()) -> Minimum:
    """Searches each pair's factor densely for the least disturbance.

    The search itself counts angles roughly (30 bits up to 2^15 positions), at a cost that does not grow with the
    length. Its best factors, with 1 and s, are then measured in the arithmetic of the frequencies, and the best of
    those is the answer. So no pair is ever worse than at 1 or at s, in the arithmetic that was asked for. The
    frequencies are not traced; the default search tries 4026 factors per pair.
    """
    return _minimise(theta, exact_turns(theta).roughly(), measure.extension, measure, search)


@functools.partial(jax.jit, static_argnames="search")
def _minimise(theta, rough, extension, measure, search):
    def cost(frequency):
        return jax.vmap(lambda factor: pair_shift(frequency, extended(frequency, factor), measure))

    def pair(frequencies):
        frequency, rough = frequencies
        tried, costs = _search_pair(cost(rough), extension, search)
        _, best = jax.lax.top_k(-costs, min(search.finalists, search.candidates))
        finalists = jnp.concatenate([jnp.stack([jnp.float32(1), jnp.float32(extension)]), tried[best]])
        costs = cost(frequency)(finalists)
        winner = jnp.argmin(costs)
        return finalists[winner], costs[winner], costs[:2]

    # One after the other, so that memory holds the candidates of one grid of one pair.
    factors, least, ends = jax.lax.map(pair, (theta, rough))
    return Minimum(factors, least, ends.T)


def _search_pair(cost, extension, search):
    """Every factor that is tried for one pair, `[N]`, and its cost."""
    extension = jnp.asarray(extension, jnp.float32)
    fan = jnp.arange(-search.fan, search.fan + 1, dtype=jnp.float32) / search.fan
    # The first grid goes through the same loop as the others, a row at a time: the cost is compiled once.
    width = 3 * fan.size
    rows = -(-search.coarse // width)
    grid = jnp.linspace(1.0, extension, search.coarse, dtype=jnp.float32)
    grid = jnp.pad(grid, (0, rows * width - search.coarse), mode="edge").reshape(rows, width)
    grids = jnp.pad(grid, ((0, len(search.steps)), (0, 0)), constant_values=1)
    steps = jnp.pad(jnp.asarray(search.steps, jnp.float32), (rows, 0))

    def try_row(best, row):
        factor, least = best
        coarse, step = row
        centres = jnp.stack([jnp.ones_like(extension), extension, factor])
        fine = (centres[:, None] * (1 + step * fan)).reshape(-1)
        tried = jnp.where(step > 0, fine, coarse)
        costs = cost(tried)
        lowest = jnp.argmin(costs)
        better = costs[lowest] < least
        best = jnp.where(better, tried[lowest], factor), jnp.where(better, costs[lowest], least)
        return best, (tried, costs)

    start = jnp.float32(1), jnp.float32(jnp.inf)
    _, (tried, costs) = jax.lax.scan(try_row, start, (grids, steps))
    return tried.reshape(-1), costs.reshape(-1)
