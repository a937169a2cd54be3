"""Selection per pair between extrapolation and interpolation (arXiv 2410.01490, Section 3), and its variants."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float32

from rope_jax.errors import InputError
from rope_jax.rope.disturbance import disturbances
from rope_jax.rope.exact.turns import exact_turns
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods.method import Method, Solution, parameter
from rope_jax.rope.minimise import minimise
from rope_jax.rope.relative import RelativeScale, compose
from rope_jax.rope.solve import Count, Selection, Threshold, select
from rope_jax.rope.unseen import unseen_mass


@dataclasses.dataclass(frozen=True)
class DPRope(Method):
    """The paper's selection between extrapolation and interpolation, by Eq. 9 or by number of dimensions.

    `energy` weighs what a pair gains by how much the model uses it, which ranks pairs otherwise. What a pair prefers
    does not depend on it.
    """

    title = "DPRoPE"
    n_hat: int = parameter(0, "dimensions that are interpolated, even; 0 chooses by the threshold")
    threshold: float = parameter(0.0, "what interpolating a pair must gain, nats")
    energy: tuple[float, ...] | None = dataclasses.field(
        default=None, metadata={"help": "weight of each pair's disturbance; without, all weigh the same"}
    )

    def __post_init__(self):
        Threshold(self.threshold)
        Count(self.n_hat)

    def check(self, geometry: Geometry, measure: Measure) -> None:
        Count(self.n_hat).check(geometry.head_dim)
        if self.energy is not None:
            check_energy(self.energy, geometry)

    def __call__(self, geometry: Geometry, measure: Measure) -> Solution:
        self.check(geometry, measure)
        rule = Count(self.n_hat) if self.n_hat else Threshold(self.threshold)
        theta, candidates = geometry.frequencies(measure.arithmetic), keep_or_interpolate(geometry, measure)
        cost = None
        if self.energy is not None:
            cost = np.asarray(self.energy, np.float32) * disturbances(theta, candidates, measure)
        return selected(geometry, measure, select(theta, candidates, measure, rule, cost))


@dataclasses.dataclass(frozen=True)
class DPRopeArgmin(Method):
    """The paper's selection with t = 0, which gives its Table 3."""

    title = "DPRoPE (argmin)"

    def __call__(self, geometry: Geometry, measure: Measure) -> Solution:
        return DPRope()(geometry, measure)


@dataclasses.dataclass(frozen=True)
class DPRopeRobust(Method):
    """Interpolates the pairs for which that leaves less unseen mass; ties extrapolate.

    These are the pairs that complete less than about one period in pre-training. Intervals play no part in the choice.
    """

    title = "DPRoPE (robust)"
    resolution: float = parameter(0.07, "how near a seen angle must be to one of pre-training, radians")

    def __post_init__(self):
        if not (math.isfinite(self.resolution) and 0 < self.resolution < math.pi):
            raise InputError(
                f"`resolution` is {self.resolution}: give an angle in radians between 0 and pi, such as 0.07"
            )

    def __call__(self, geometry: Geometry, measure: Measure) -> Solution:
        theta, candidates = geometry.frequencies(measure.arithmetic), keep_or_interpolate(geometry, measure)
        unseen = unseen_mass(exact_turns(theta), candidates, measure, self.resolution)
        return selected(geometry, measure, select(theta, candidates, measure, cost=unseen))


@dataclasses.dataclass(frozen=True)
class Minimal(Method):
    """The factor of each pair that disturbs its angles least, from a continuous range."""

    title = "minimal disturbance"

    def __call__(self, geometry: Geometry, measure: Measure) -> Solution:
        found = minimise(geometry.frequencies(measure.arithmetic), measure)
        return Solution.measured(geometry, measure, compose(geometry.own, RelativeScale.create(found.factors)))


def keep_or_interpolate(geometry: Geometry, measure: Measure) -> Float32[np.ndarray, "2 pairs"]:
    """The paper's candidates: factors of 1, and of s."""
    pairs = geometry.head_dim // 2
    return np.stack([np.ones(pairs), np.full(pairs, measure.extension)]).astype(np.float32)


def selected(geometry: Geometry, measure: Measure, selection: Selection) -> Solution:
    """A selection, composed with the model's own scaling and measured."""
    scale = compose(geometry.own, RelativeScale.create(selection.factors))
    return Solution.measured(geometry, measure, scale, selection)


def check_energy(energy: tuple[float, ...], geometry: Geometry) -> None:
    """Requires a weight for each pair of a model."""
    if len(energy) != geometry.head_dim // 2:
        raise InputError(
            f"`energy` has {len(energy)} weights and the model {geometry.head_dim // 2} pairs: measure this model"
        )
