"""What every method is and gives."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32

from rope_jax.rope.disturbance import shift
from rope_jax.rope.embedding import ScaleVector
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.relative import RelativeScale, compose
from rope_jax.rope.solve import Selection


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
    """The outcome of a method.

    Attributes:
        scale: what the extended model takes, the model's own scaling included.
        shifts: `[1, D/2]`, the disturbance of each pair, nats; of a vector per layer `[layers, D/2]`.
        interpolated_dimensions: dimensions whose frequency the extension changes.
        selection: the choice per pair, if there is one.
    """

    scale: ScaleVector
    shifts: Float32[np.ndarray, "rows pairs"]
    interpolated_dimensions: int
    selection: Selection | None = None

    @property
    def disturbance(self) -> Float32[np.ndarray, " pairs"]:
        """The mean of `shifts` over layers, nats."""
        return self.shifts.mean(axis=0)

    @classmethod
    def measured(
        cls, geometry: Geometry, measure: Measure, scale: ScaleVector, selection: Selection | None = None
    ) -> Solution:
        """A scale vector of the extended model, `[D/2]` or `[layers, D/2]`, with its disturbance."""
        rows = np.atleast_2d(np.asarray(scale.factors))
        theta = geometry.frequencies(measure.arithmetic)
        shifts = [shift(theta, geometry.frequencies(measure.arithmetic, row), measure) for row in rows]
        changed = np.any(rows != np.asarray(geometry.own.factors), axis=0)
        return cls(scale, np.stack(shifts), 2 * int(changed.sum()), selection)


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """A way to extend a context: its parameters, called with a model's geometry and a measure.

    The fields of a method are its own parameters. Each has a default, and its meaning in `parameter`. `title` is its
    name in tables and pictures.
    """

    title: ClassVar[str]

    @property
    def layered(self) -> str:
        """The parameter that makes this a vector per layer; empty for one vector for all layers."""
        return ""

    @abc.abstractmethod
    def __call__(self, geometry: Geometry, measure: Measure) -> Solution:
        """The scale vector and its disturbance.

        Raises:
            InputError: naming the parameter that cannot be used, before anything is compiled.
        """

    def check(self, geometry: Geometry, measure: Measure) -> None:  # noqa: B027 (most parameters fit every geometry)
        """Raises what a call would, without compiling anything."""


@dataclasses.dataclass(frozen=True)
class ClosedForm(Method):
    """A method whose factors are a formula."""

    @abc.abstractmethod
    def relative(self, geometry: Geometry, measure: Measure) -> RelativeScale:
        """The formula: factors relative to the model's own frequencies."""

    def scale(self, geometry: Geometry, measure: Measure) -> ScaleVector:
        """The formula on top of the model's own scaling."""
        return compose(geometry.own, self.relative(geometry, measure))

    def __call__(self, geometry: Geometry, measure: Measure) -> Solution:
        """Evaluates the formula and measures its disturbance."""
        return Solution.measured(geometry, measure, self.scale(geometry, measure))

    def check(self, geometry: Geometry, measure: Measure) -> None:
        """Evaluates the formula, which compiles nothing."""
        self.scale(geometry, measure)


def parameter(default: Any, meaning: str) -> Any:
    """A field of a method, with its meaning as `metadata["help"]`."""
    return dataclasses.field(default=default, metadata={"help": meaning})
