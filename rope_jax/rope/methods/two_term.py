"""The factor of each pair that weighs changed distances against unseen angles least."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from rope_jax.errors import InputError
from rope_jax.rope.arrays import AnyArray
from rope_jax.rope.distances import DistanceHistogram, DistanceWeights, position_pairs
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods.method import ClosedForm, parameter
from rope_jax.rope.relative import RelativeScale
from rope_jax.rope.two_term import pair_changed, pair_unseen

# Factors of a grid, even in their logarithm, and grids, each finer around the best so far.
_GRID, _GRIDS = 129, 3


@dataclasses.dataclass(frozen=True)
class TwoTerm(ClosedForm):
    """`f_i` in [1, s] least in `A_i + unseen_weight B_i` (`rope_jax/rope/two_term.py`)."""

    title = "two-term"
    unseen_weight: float = parameter(30.0, "weight of angles never seen against familiar distances that change")
    distances: DistanceHistogram | None = dataclasses.field(
        default=None, metadata={"help": "measured distances; without, every pair of positions counts the same"}
    )

    def __post_init__(self):
        if not (math.isfinite(self.unseen_weight) and self.unseen_weight >= 0):
            raise InputError(f"`unseen_weight` is {self.unseen_weight}: it must be a finite number of at least 0")

    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        seen, extended = self.weights(measure)
        factors = least_cost(
            geometry.theta(),
            np.float32(measure.extension),
            (measure.original, float(self.unseen_weight)),
            seen,
            extended,
        )
        return RelativeScale.create(factors)

    def check(self, geometry: Geometry, measure: Measure) -> None:
        self.weights(measure)

    def weights(self, measure: Measure) -> tuple[DistanceWeights, DistanceWeights]:
        """The weights of the distances within the original context, and within the extended one."""
        if self.distances is None:
            return position_pairs(measure.original), position_pairs(measure.target)
        distances = self.distances
        if distances.edges[-1] < measure.original:
            raise InputError(
                f"`distances` end at {distances.edges[-1]:,} tokens, before the original context of "
                f"{measure.original:,}: measure texts of that length"
            )
        return distances.up_to(measure.original), distances.stretched(measure.original, measure.target)


@jax.jit
def least_cost(
    theta: Float32[AnyArray, " pairs"],
    extension: Float32[AnyArray, ""],
    setting: tuple,
    seen: DistanceWeights,
    extended: DistanceWeights,
) -> Float32[Array, " pairs"]:
    """The factor of each pair, to a relative precision of 1e-5.

    `setting` is the original context, tokens, and the weight of unseen angles; `seen` and `extended` weigh the
    distances below the original and the extended context.
    """
    original, unseen_weight = setting

    def pair(theta):
        def cost(logarithm):
            factor = jnp.exp(logarithm)
            return pair_changed(theta, factor, seen) + unseen_weight * pair_unseen(theta, factor, original, extended)

        def finer(found, width):
            logarithms = jnp.clip(found + width * jnp.linspace(-1, 1, _GRID), 0, most)
            return logarithms[jnp.argmin(jax.vmap(cost)(logarithms))], None

        most = jnp.log(extension)
        # From all of [1, s], each grid spans two steps of the one before.
        widths = most / 2 * jnp.asarray([(2 / (_GRID - 1)) ** n for n in range(_GRIDS)], jnp.float32)
        return jnp.exp(jax.lax.scan(finer, most / 2, widths)[0])

    # One after the other: a slow pair takes many rounds of the circle, which others would wait for.
    return jax.lax.map(pair, theta)
