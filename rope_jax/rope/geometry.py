"""What of a model context extension depends on: its rotary frequencies."""

import dataclasses

import numpy as np
from jaxtyping import Float32

from rope_jax.errors import InputError
from rope_jax.rope.angles import extended
from rope_jax.rope.arrays import AnyArray
from rope_jax.rope.embedding import ScaleVector, frequencies
from rope_jax.rope.exact.turns import Turns, exact_frequencies
from rope_jax.rope.measure import FLOAT32


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
    """The rotary geometry of a model.

    Attributes:
        base: rotary base, above 1.
        head_dim: head dimension D, even.
        own: the scaling that the model's config already carries, one vector for all layers.
        layers: number of layers; None if unknown, which allows no extension per layer.
    """

    base: float
    head_dim: int
    own: ScaleVector
    layers: int | None = None

    def __post_init__(self):
        frequencies(self.base, self.head_dim)  # refuses what no rotary embedding can have
        shape = np.shape(self.own.factors)
        if len(shape) == 2:
            raise InputError(
                "`own` is one scale vector per layer already: extend the model that this one was made from"
            )
        if shape != (self.head_dim // 2,):
            raise InputError(
                f"`own` has factors of shape {list(shape)}: a head dimension of {self.head_dim} needs"
                f" [{self.head_dim // 2}]"
            )

    def theta(self) -> Float32[np.ndarray, " pairs"]:
        """Frequencies before extension, the model's own scaling included, radians per position."""
        return frequencies(self.base, self.head_dim) / np.asarray(self.own.factors)

    def frequencies(
        self, arithmetic: str = FLOAT32, factors: Float32[AnyArray, " pairs"] | None = None
    ) -> Float32[AnyArray, " pairs"] | Turns:
        """Frequencies under a scale vector's factors, by default the model's own, in the arithmetic of a measure.

        "float32" is radians per position, rounded as they are served; "exact" is `Turns` per position.
        """
        plain = frequencies if arithmetic == FLOAT32 else exact_frequencies
        return extended(plain(self.base, self.head_dim), np.asarray(self.own.factors if factors is None else factors))
