"""How a disturbance is measured: two contexts, and how the angle distributions are estimated and compared."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np

from rope_jax.errors import InputError
from rope_jax.rope.checks import check_original, whole

PRETRAINED_TO_EXTENDED = "pretrained_to_extended"
EXTENDED_TO_PRETRAINED = "extended_to_pretrained"
JENSEN_SHANNON = "jensen_shannon"
DISTANCES = (PRETRAINED_TO_EXTENDED, EXTENDED_TO_PRETRAINED, JENSEN_SHANNON)

FLOAT32 = "float32"
EXACT = "exact"
# Arithmetic to the most positions that it tells apart.
LONGEST = {FLOAT32: 2**24, EXACT: 2**31 - 1}

# What the authors add to each count, so that an empty interval has a logarithm.
PSEUDO_COUNT = float(np.finfo(np.float16).tiny)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Measure:
    """The setting of arXiv 2410.01490, Eq. 5-8.

    A pytree whose contexts and pseudo-count are traced, so that another length compiles nothing; the rest is static.

    Attributes:
        original: pre-training context L, tokens.
        target: extended context L', tokens; above L.
        intervals: number b of equal intervals of [0, 2 pi); at least 2.
        distance: one of `DISTANCES`, between the histograms before and after extension.
        pseudo_count: added to each count; at least 1e-30.
        arithmetic: of the angles: "float32" rounds as the authors' solver does, up to 2^24 positions; "exact" counts
            fixed-point angles up to 2^31 - 1, at a cost that hardly grows with the length.

    Example:
        >>> Measure(original=4096, target=16384).extension
        4.0
    """

    original: int
    target: int
    _: dataclasses.KW_ONLY
    intervals: int = 360
    distance: str = PRETRAINED_TO_EXTENDED
    pseudo_count: float = PSEUDO_COUNT
    arithmetic: str = FLOAT32

    def __post_init__(self):
        original, target = whole("original", self.original), whole("target", self.target)
        check_original(original, least=1)
        if target <= original:
            raise InputError(
                f"`target` is {target}, not longer than `original` ({original}): nothing is extended; set `target`"
                f" above {original}, for example {2 * original}"
            )
        if whole("intervals", self.intervals) < 2:
            raise InputError(f"`intervals` is {self.intervals}: at least 2 are needed (the paper uses 360)")
        for field, values in (("distance", DISTANCES), ("arithmetic", tuple(LONGEST))):
            if getattr(self, field) not in values:
                raise InputError(f"`{field}` is {getattr(self, field)!r}: use one of {', '.join(values)}")
        if target > LONGEST[self.arithmetic]:
            why = (
                "float32 skips positions above 2^24; use `arithmetic` exact, or " if self.arithmetic == FLOAT32 else ""
            )
            raise InputError(f"`target` is {target}: {why}set it to {LONGEST[self.arithmetic]} or less")
        # Divided by a context length, a smaller one would underflow in float32 and its logarithm be infinite.
        if not (math.isfinite(self.pseudo_count) and self.pseudo_count >= 1e-30):
            raise InputError(
                f"`pseudo_count` is {self.pseudo_count}: use a finite number of at least 1e-30 (the authors use"
                f" {PSEUDO_COUNT:.1e})"
            )

    @property
    def extension(self) -> float:
        """The extension factor s = L'/L."""
        return self.target / self.original

    def tree_flatten(self):
        """Traced numbers, and static settings."""
        return (self.original, self.target, self.pseudo_count), (self.intervals, self.distance, self.arithmetic)

    @classmethod
    def tree_unflatten(cls, static, traced) -> Measure:
        """The measure again, unchecked: inside a transformation its numbers are tracers."""
        measure = object.__new__(cls)
        names = ("original", "target", "pseudo_count", "intervals", "distance", "arithmetic")
        for name, value in zip(names, (*traced, *static)):
            object.__setattr__(measure, name, value)
        return measure
