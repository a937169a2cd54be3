"""Rows of text mixed with rows of synthetic recall.

From tokens in memory, any batch is found by its number alone; in packed batches, some rows are replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
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
# Arrays of a batch.
NAMES = ("tokens", "segment_ids", "positions")


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
        return {name: np.stack(columns) for name, columns in zip(NAMES, zip(*drawn))}

    def _row(self, rng, index, length):
        if is_recall(index, self.share):
            return recall_row(rng, self.text, length, self.symbols, self.bos_id)
        return _packed([crop(rng, self.text, length - 1)], self.bos_id)


@dataclasses.dataclass(frozen=True)
class RecallRows:
    """A share of the rows of packed batches becomes recall, whose facts stand in the text of the same row.

    Attributes:
        share: share of rows, below 1.
        symbols: ids of recall rows.
        bos_id: begins every document of a row.
        seed: determines, with its number, what is drawn for a row.
    """

    share: float
    symbols: Symbols
    bos_id: int
    seed: int

    def __call__(self, batch: Mapping[str, np.ndarray], indices: Sequence[int]) -> dict[str, np.ndarray]:
        """A batch, int32 `[B, T]` each, whose rows have these numbers in the whole training."""
        rows = {name: values.copy() for name, values in batch.items()}
        for place, index in enumerate(indices):
            if is_recall(index, self.share):
                rng, text = np.random.default_rng((self.seed, index)), batch["tokens"][place]
                drawn = recall_row(rng, text, len(text), self.symbols, self.bos_id)
                for name, values in zip(NAMES, drawn):
                    rows[name][place] = values
        return rows


def is_recall(index: int, share: float) -> bool:
    """Whether the row of that number is recall: evenly among the rows, so that every batch has its share."""
    return int((index + 1) * share) > int(index * share)


def crop(rng: np.random.Generator, text: np.ndarray, length: int) -> np.ndarray:
    """A piece of a text, at a random place."""
    start = int(rng.integers(len(text) - length + 1))
    return text[start : start + length].copy()


def recall_row(
    rng: np.random.Generator, text: np.ndarray, length: int, symbols: Symbols, bos_id: int
) -> tuple[np.ndarray, ...]:
    """A row of recall with pieces of a text, int32 `[n >= length]`: int32 `[length]` of each of `NAMES`."""
    count = min(int(rng.choice(DOCUMENTS)), max(length // 32, 1))
    edges = np.linspace(0, length, count + 1).astype(int)
    return _packed([_recall(rng, text, size - 1, symbols) for size in np.diff(edges)], bos_id)


def _recall(rng, text, length, symbols):
    kind = int(rng.choice(len(KINDS), p=KINDS))
    if kind == 0:
        return copies(rng, length, symbols).tokens
    if kind == 1:
        return stream(rng, length, symbols).tokens
    count = min(max(length // SPARSE, 2), symbols.keys)
    return facts(rng, crop(rng, text, length), symbols, count).tokens


def _packed(documents, bos_id):
    parts = [(np.r_[np.int32(bos_id), tokens], i, np.arange(len(tokens) + 1)) for i, tokens in enumerate(documents, 1)]
    tokens, segments, positions = zip(*((t, np.full(len(t), i), p) for t, i, p in parts))
    return tuple(np.concatenate(x).astype(np.int32) for x in (tokens, segments, positions))


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
