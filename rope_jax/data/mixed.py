"""Mixed context windows: some batches hold short documents, for the original scale vector (arXiv 2502.20082)."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from rope_jax.errors import InputError, require

# Key of a batch that says, as a bool, whether its documents are short.
SHORT = "short"


@dataclasses.dataclass(frozen=True)
class Mix:
    """A share of all batches holds short documents only: longer ones are cut, and positions do not skip.

    Attributes:
        share: share of batches, above 0 and below 1.
        context: the original context L: tokens that a document of these has at most.
    """

    share: float
    context: int

    def __post_init__(self):
        require(self, "share", 0 < self.share < 1, "it must lie between 0 and 1")
        if self.context < 2:
            raise InputError(f"`context` is {self.context}: a document needs 2 tokens or more")

    def __call__(self, batch: Mapping[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
        """The batch of that number, from 0; short ones are spread evenly."""
        short = int((number + 1) * self.share) > int(number * self.share)
        return {**batch, **(self.cut(batch["segment_ids"]) if short else {}), SHORT: np.asarray(short)}

    def cut(self, segment_ids: np.ndarray) -> dict[str, np.ndarray]:
        """Segments and positions of packed rows, int32 `[B, T]`, whose documents are cut every `context` tokens."""
        index = np.arange(segment_ids.shape[1], dtype=np.int32)
        begins = np.diff(segment_ids, prepend=0) != 0
        positions = index - np.maximum.accumulate(np.where(begins, index, 0), axis=1)
        pieces = np.cumsum(positions % self.context == 0, axis=1, dtype=np.int32)
        return {"segment_ids": pieces, "positions": positions % np.int32(self.context)}
