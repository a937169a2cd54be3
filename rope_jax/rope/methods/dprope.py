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

    `energy` weighs what a pair gains by how much the model uses it, which ranks pairs otherwise; given by layer, each
    layer ranks its own. What a pair prefers does not depend on it.
    """

    title = "DPRoPE"
    n_hat: int = parameter(0, "dimensions that are interpolated, even; 0 chooses by the threshold")
    threshold: float = parameter(0.0, "what interpolating a pair must gain, nats")
    energy: tuple | None = dataclasses.field(
        default=None, metadata={"help": "weight of each pair's disturbance, or a row per layer; without, all the same"}
    )

    def __post_init__(self):
        Threshold(self.threshold)
        Count(self.n_hat)

    @property
    def layered(self) -> str:
        return "energy" if np.ndim(self.energy or 0) == 2 else ""

    def check(self, geometry: Geometry, measure: Measure) -> None:
        Count(self.n_hat).check(geometry.head_dim)
        if self.energy is not None:
            check_energy(self.energy, geometry)

    def __call__(self, geometry: Geometry, measure: Measure) -> Solution:
        self.check(geometry, measure)
        rule = Count(self.n_hat) if self.n_hat else Threshold(self.threshold)
        theta, candidates = geometry.frequencies(measure.arithmetic), keep_or_interpolate(geometry, measure)
        if self.energy is None:
            return selected(geometry, measure, select(theta, candidates, measure, rule))
        plain, rows = disturbances(theta, candidates, measure), np.atleast_2d(np.asarray(self.energy, np.float32))
        layers = [select(theta, candidates, measure, rule, row * plain) for row in rows]
        if not self.layered:
            return selected(geometry, measure, layers[0])
        scale = compose(geometry.own, RelativeScale.create([layer.factors for layer in layers]))
        return Solution.measured(geometry, measure, scale)


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


def check_energy(energy: tuple, geometry: Geometry) -> None:
    """Requires a weight for each pair of a model, or a row of them for each layer."""
    shape, pairs = np.shape(energy), geometry.head_dim // 2
    if shape[-1] != pairs:
        raise InputError(f"`energy` has {shape[-1]} weights and the model {pairs} pairs: measure this model")
    if len(shape) == 2 and len(energy) != geometry.layers:
        layers = "an unknown number of" if geometry.layers is None else geometry.layers
        raise InputError(f"`energy` has {len(energy)} layers and the model {layers}: name the model that was measured")
