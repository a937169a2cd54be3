"""How much distances between two tokens count: weights over 0, 1, 2, ... positions."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Float32

from rope_jax.errors import InputError
from rope_jax.rope.arrays import AnyArray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DistanceWeights:
    """Weights that sum to 1, linear within each of K bins of distances.

    Distance `start_k + j` of the bin that holds `size_k` of them weighs `level_k + j slope_k`.

    Attributes:
        start: float32 `[K]`, whole numbers; the first distance of a bin, tokens.
        size: float32 `[K]`, whole numbers.
        level: float32 `[K]`.
        slope: float32 `[K]`.
    """

    start: Float32[AnyArray, " bins"]
    size: Float32[AnyArray, " bins"]
    level: Float32[AnyArray, " bins"]
    slope: Float32[AnyArray, " bins"]


def position_pairs(length: int) -> DistanceWeights:
    """Every pair of positions of a context counts the same: distance Delta weighs `L - Delta`."""
    total = length * (length + 1) / 2
    return DistanceWeights(*(np.asarray([x], np.float32) for x in (0, length, length / total, -1 / total)))


@dataclasses.dataclass(frozen=True)
class DistanceHistogram:
    """Measured distances: bin k holds the distances from `edges[k]` up to, not including, `edges[k + 1]`.

    Attributes:
        edges: K + 1 rising whole numbers, the first 0, tokens.
        mass: K shares, such as the attention that falls into a bin; of any sum.
    """

    edges: tuple[int, ...]
    mass: tuple[float, ...]

    def __post_init__(self):
        edges, mass = np.asarray(self.edges, float), np.asarray(self.mass, float)
        rising = len(edges) >= 2 and edges[0] == 0 and (np.diff(edges) >= 1).all() and (edges == np.round(edges)).all()
        if not rising:
            raise InputError("`edges` must be whole numbers that rise from 0, at least two")
        usable = np.isfinite(mass).all() and (mass >= 0).all() and mass.sum() > 0
        if mass.shape != (len(edges) - 1,) or not usable:
            raise InputError(
                f"`mass` must be {len(edges) - 1} finite numbers of at least 0, one per bin, not all of them 0"
            )

    def up_to(self, length: int) -> DistanceWeights:
        """The distances below `length`."""
        edges = np.asarray(self.edges, np.float64)
        return self._between(np.clip(edges, 0, length), np.diff(edges))

    def stretched(self, original: int, target: int) -> DistanceWeights:
        """The distances below `target`: as measured if any of `original` or more were, else by `target / original`.

        A model that was measured within its own context says nothing of longer distances. Stretched, what it attends to
        keeps its place in the context.
        """
        if self.edges[-1] > original:
            return self.up_to(target)
        edges = np.round(np.asarray(self.edges, np.float64) * target / original)
        return self._between(edges, np.diff(edges))

    def _between(self, edges: np.ndarray, widths: np.ndarray) -> DistanceWeights:
        """Weights of the distances between edges, where the mass of each bin is spread over a width."""
        size = np.diff(edges)
        level = np.asarray(self.mass, np.float64) / widths
        if not (size @ level) > 0:
            raise InputError("`mass` is 0 at every distance within the context: measure longer texts")
        kept = size > 0
        numbers = (edges[:-1][kept], size[kept], level[kept] / (size @ level), np.zeros(kept.sum()))
        return DistanceWeights(*(x.astype(np.float32) for x in numbers))
