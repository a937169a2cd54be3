"""Positions that jump, so that short rows reach every position of a long context (PoSE, arXiv 2309.10400)."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from rope_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Skips:
    """Each document of a row is cut into chunks at random, and positions skip a random number between them.

    Cuts are uniform, and so is how far each chunk is moved, over what fits: the positions of a document rise from 0 to
    at most `reach - 1`. Which tokens attend to which does not change.

    Attributes:
        reach: the extended context L', tokens.
        chunks: chunks of a document; PoSE takes 2.
    """

    reach: int
    chunks: int = 2

    def __post_init__(self):
        if self.chunks < 2:
            raise InputError(f"`chunks` is {self.chunks}: positions skip between 2 or more")

    def __call__(self, row: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A packed row of Grain, with its positions skipped."""
        positions = row["tokens_positions"].copy()
        starts = np.flatnonzero(np.diff(row["tokens_segment_ids"], prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(positions)]):
            length = end - start
            if length == 1:
                continue
            cuts = np.sort(rng.integers(1, length, self.chunks - 1))
            skips = np.sort(rng.integers(0, self.reach - length, self.chunks - 1, endpoint=True))
            rises = np.zeros(length, positions.dtype)
            np.add.at(rises, cuts, np.diff(skips, prepend=0).astype(positions.dtype))
            positions[start:end] += np.cumsum(rises, dtype=positions.dtype)
        return {**row, "tokens_positions": positions}
