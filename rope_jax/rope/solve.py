"""Per frequency pair, the factor that disturbs its angles least (arXiv 2410.01490, Section 3).

A candidate is a row of factors, one per pair. Row 0 is the default, extrapolation in the paper; a pair leaves it for
the best of the other rows where that lowers its disturbance enough.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32

from rope_jax.errors import InputError
from rope_jax.rope.arrays import AnyArray
from rope_jax.rope.checks import whole
from rope_jax.rope.disturbance import disturbances
from rope_jax.rope.exact.turns import Turns
from rope_jax.rope.measure import Measure


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Eq. 9: pairs that gain more than `threshold` leave row 0. 0 is the argmin, which gives Table 3; ties stay.

    It is not negative, so that no pair leaves for something worse.
    """

    threshold: float = 0.0

    def __post_init__(self):
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise InputError(f"`threshold` is {self.threshold}: it must be a finite number, 0 (the argmin) or above")

    def leaving(self, gain: Float32[Array, " pairs"]) -> Bool[Array, " pairs"]:
        """The pairs that leave row 0, given what each gains, `D_i(1) - D_i(s)`."""
        return gain > jnp.float32(self.threshold)


@dataclasses.dataclass(frozen=True)
class Count:
    """Eq. 9 with t given through n_hat, the number of dimensions, two per pair, that leave row 0.

    The pairs that gain most leave, of equal ones the lower, even where their gain is negative. LLaMA2: 80 at 8k, 64
    at 16k.
    """

    n_hat: int

    def __post_init__(self):
        if whole("n_hat", self.n_hat) % 2:
            raise InputError(
                f"`n_hat` is {self.n_hat}: dimensions come in pairs; use {self.n_hat - 1} or {self.n_hat + 1}"
            )

    def leaving(self, gain: Float32[Array, " pairs"]) -> Bool[Array, " pairs"]:
        """The pairs whose `gain` is among the n_hat / 2 largest."""
        self.check(head_dim=2 * len(gain))
        rank = jnp.argsort(jnp.argsort(-gain, stable=True))
        return rank < self.n_hat // 2

    def check(self, head_dim: int) -> None:
        """Requires that a head has as many dimensions."""
        if not 0 <= self.n_hat <= head_dim:
            raise InputError(f"`n_hat` is {self.n_hat}: use an even number from 0 to the head dimension, {head_dim}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Selection:
    """The outcome of a selection among C candidates for D/2 pairs.

    Attributes:
        winner: int32 `[D/2]`, the row of the candidates that each pair took.
        factors: float32 `[D/2]`, the factors of those rows.
        disturbance: float32 `[C, D/2]`, of every candidate, nats.
        margin: float32 `[D/2]`, nats: what the best other candidate would cost more; negative where the rule
            overruled the lower disturbance.
        thresholds: float32 `[2]`: Eq. 9 makes the same choice for t from the first up to, not including, the second.
            They are equal if no t does, because pairs with the same gain were parted.
    """

    winner: jax.Array
    factors: jax.Array
    disturbance: jax.Array
    margin: jax.Array
    thresholds: jax.Array


def select(
    theta: Float32[AnyArray, " pairs"] | Turns,
    candidates: Float[AnyArray, "candidates _"],
    measure: Measure,
    rule: Threshold | Count = Threshold(),
    cost: Float32[Array, "candidates pairs"] | None = None,
) -> Selection:
    """Selects a row of `candidates` for every pair.

    Args:
        theta: frequencies of the model that is extended.
        candidates: positive scale factors, the default row first, at least one other.
        rule: which pairs leave the default row.
        cost: what pairs compare, and the unit of `thresholds`; by default the disturbance, which the paper compares.

    Example:
        >>> theta = 10000.0 ** -(np.arange(0, 16, 2, dtype=np.float32) / 16)
        >>> found = select(theta, np.array([[1.0] * 8, [2.0] * 8]), Measure(original=256, target=512))
        >>> print(found.factors)  # slow pairs, whose angles are new at 512 positions, take row 1
        [1. 2. 2. 1. 2. 2. 2. 2.]
    """
    rows = np.asarray(candidates, np.float32)
    if rows.ndim != 2 or len(rows) < 2 or rows.shape[1] != len(theta):
        raise InputError(
            f"`candidates` has shape {list(rows.shape)}: a default row and at least one other are needed, each of D/2 ="
            f" {len(theta)} factors"
        )
    if not (np.isfinite(rows).all() and (rows > 0).all()):
        raise InputError("`candidates` has a factor that is not a finite number above 0")
    if isinstance(rule, Count):
        rule.check(head_dim=2 * len(theta))
    disturbance = disturbances(theta, rows, measure)  # Eq. 8
    cost = disturbance if cost is None else cost
    gain = cost[0] - cost[1:].min(axis=0)  # D_i(1) - D_i(s)
    return choose(rows, disturbance, cost, rule.leaving(gain))


@jax.jit
def choose(candidates, disturbance, cost, leaves) -> Selection:
    """The selection in which the pairs that `leaves` marks take the cheapest row but row 0."""
    gain = cost[0] - cost[1:].min(axis=0)
    # Eq. 9: f_i = s if D_i(1) > D_i(s) + t, else 1.
    winner = jnp.where(leaves, 1 + jnp.argmin(cost[1:], axis=0), 0).astype(jnp.int32)
    won = jnp.arange(len(cost), dtype=jnp.int32)[:, None] == winner
    return Selection(
        winner=winner,
        factors=jnp.take_along_axis(candidates, winner[None], axis=0)[0],
        disturbance=disturbance,
        margin=jnp.where(won, jnp.inf, disturbance).min(axis=0) - jnp.where(won, disturbance, 0.0).sum(axis=0),
        thresholds=jnp.stack([jnp.where(leaves, -jnp.inf, gain).max(), jnp.where(leaves, gain, jnp.inf).min()]),
    )
