"""Rows of text mixed with rows of synthetic recall, from tokens in memory; any batch is found by its number alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from rope_jax.data.recall import Symbols, copies, facts, stream
from rope_jax.errors import InputError, require

# A recall row is a document, or two or four of them: near and far is then learned from the first step on.
DOCUMENTS = (1, 1, 2, 4)
# Shares of copies, streams, and texts with facts. The first two have many answers to learn from, the last has them at
# all distances.
KINDS = (0.2, 0.3, 0.5)
# Tokens of a text to each fact in it.
SPARSE = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """What batches are drawn from.

    Attributes:
        text: int32 `[n]`, all training documents one after the other.
        symbols: ids of recall rows.
        share: share of rows that are recall, below 1.
        bos_id: begins every document of a row.
    """

    text: np.ndarray
    symbols: Symbols
    share: float
    bos_id: int

    def __post_init__(self):
        require(self, "share", 0 <= self.share < 1, "it must lie in 0 .. 1, below 1")

    def batch(self, number: int, rows: int, length: int, seed: int) -> dict[str, np.ndarray]:
        """The batch of that number, int32 `[rows, length]` each: `tokens`, `segment_ids` from 1, and `positions`."""
        if len(self.text) < length:
            raise InputError(f"`text` has {len(self.text)} tokens, fewer than a row of {length}: add texts", "text")
        rng = np.random.default_rng((seed, number))
        drawn = [self._row(rng, number * rows + row, length) for row in range(rows)]
        names = ("tokens", "segment_ids", "positions")
        return {name: np.stack(columns) for name, columns in zip(names, zip(*drawn))}

    def crop(self, rng: np.random.Generator, length: int) -> np.ndarray:
        start = int(rng.integers(len(self.text) - length + 1))
        return self.text[start : start + length].copy()

    def _row(self, rng, index, length):
        # Evenly among the rows, so that every batch has its share.
        if int((index + 1) * self.share) == int(index * self.share):
            documents = [self.crop(rng, length - 1)]
        else:
            count = min(int(rng.choice(DOCUMENTS)), max(length // 32, 1))
            edges = np.linspace(0, length, count + 1).astype(int)
            documents = [self._recall(rng, size - 1) for size in np.diff(edges)]
        parts = [
            (np.r_[np.int32(self.bos_id), tokens], i, np.arange(len(tokens) + 1))
            for i, tokens in enumerate(documents, 1)
        ]
        tokens, segments, positions = zip(*((t, np.full(len(t), i), p) for t, i, p in parts))
        return tuple(np.concatenate(x).astype(np.int32) for x in (tokens, segments, positions))

    def _recall(self, rng, length):
        kind = int(rng.choice(len(KINDS), p=KINDS))
        if kind == 0:
            return copies(rng, length, self.symbols).tokens
        if kind == 1:
            return stream(rng, length, self.symbols).tokens
        count = min(max(length // SPARSE, 2), self.symbols.keys)
        return facts(rng, self.crop(rng, length), self.symbols, count).tokens


class MixtureBatches:
    """An endless iterator of the batches of a mixture, whose position can be saved and restored."""

    def __init__(self, mixture: Mixture, shape: tuple[int, int], seed: int, skip_to: int | None = None):
        """Batches of `shape` rows and tokens; with `skip_to`, positions skip (`skipped`) to below that many."""
        self._mixture, self._shape, self._seed, self._skip_to = mixture, shape, seed, skip_to
        self._number = 0

    def __iter__(self) -> MixtureBatches:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = self._mixture.batch(self._number, *self._shape, self._seed)
        if self._skip_to is not None:
            rng = np.random.default_rng((self._seed, self._number, self._skip_to))
            batch["positions"] = skipped(rng, batch["positions"], self._skip_to)
        self._number += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"number": self._number}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._number = int(state["number"])


def skipped(rng: np.random.Generator, positions: np.ndarray, target: int) -> np.ndarray:
    """Positions int32 `[B, T]` that jump once, at a random place of each row, so that any below `target` may occur.

    Tokens from there on stand 0 to `target - T` positions later, which is uniform (PoSE, arXiv 2309.10400, two chunks).
    """
    rows, length = positions.shape
    cuts = rng.integers(1, length, (rows, 1))
    skips = rng.integers(0, target - length + 1, (rows, 1))
    return (positions + np.where(np.arange(length) >= cuts, skips, 0)).astype(np.int32)
