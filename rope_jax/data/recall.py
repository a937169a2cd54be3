"""Synthetic recall: rows in which a token follows from an earlier place of the same row.

Symbols are ids that no text has; the first half of them are keys, the second half values. Three kinds: pairs of a key
and its value, each asked for again and again (multi-query recall, Arora et al., arXiv 2312.04927); a sequence that
repeats (copying, Olsson et al., arXiv 2209.11895); and a text with pairs in it, each of which is asked for once.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Symbols:
    """Ids `first .. first + count - 1`; `count` is even and at least 4."""

    first: int
    count: int

    @property
    def keys(self) -> np.ndarray:
        return np.arange(self.first, self.first + self.count // 2, dtype=np.int32)

    @property
    def values(self) -> np.ndarray:
        return self.keys + self.count // 2

    @property
    def all(self) -> np.ndarray:
        return np.arange(self.first, self.first + self.count, dtype=np.int32)


class Recall(NamedTuple):
    """Tokens int32 `[n]`, and for each that an earlier one determines its distance in tokens to that, else 0."""

    tokens: np.ndarray
    distances: np.ndarray


def pair_stream(rng: np.random.Generator, length: int, symbols: Symbols) -> Recall:
    """Keys and values in turn. Two fifths are new, until all keys are known; the others come again with their value.

    What comes again is the pair of an earlier place, which is drawn uniformly, or so that the logarithm of how far back
    it is, is uniform. Pairs are few, so most have come again since: distances are short, those of `needles` are not.
    """
    slots = length // 2
    keys, values = rng.permutation(symbols.keys), rng.choice(symbols.values, symbols.count // 2)
    logarithmic = rng.random() < 0.5
    fresh, draws = rng.random(slots) < 0.4, rng.random(slots)
    chosen = np.zeros(slots, np.int64)
    distances = np.zeros(length, np.int32)
    last: dict[int, int] = {}
    for slot in range(slots):
        if not last or (fresh[slot] and len(last) < len(keys)):
            pair = len(last)
        else:
            back = int(slot ** draws[slot]) if logarithmic else 1 + int(slot * draws[slot])
            pair = int(chosen[slot - min(max(back, 1), slot)])
            distances[2 * slot + 1] = 2 * (slot - last[pair])
        chosen[slot] = pair
        last[pair] = slot
    tokens = np.zeros(length, np.int32)
    tokens[: 2 * slots : 2], tokens[1 : 2 * slots : 2] = keys[chosen], values[chosen]
    if length % 2:
        tokens[-1] = keys[0]
    return Recall(tokens, distances)


def copies(rng: np.random.Generator, length: int, symbols: Symbols) -> Recall:
    """A random sequence, of 4 symbols up to half of the row, again and again."""
    period = int(np.exp(rng.uniform(np.log(4), np.log(max(length // 2, 5)))))
    tokens = np.resize(rng.choice(symbols.all, period), length).astype(np.int32)
    # The first token of the first copy follows from nothing.
    distances = np.where(np.arange(length) > period, period, 0).astype(np.int32)
    return Recall(tokens, distances)


def needles(rng: np.random.Generator, text: np.ndarray, symbols: Symbols, pairs: int) -> Recall:
    """A text, int32 `[n]`, in which each of so many pairs stands twice; the second time asks for the value."""
    length = len(text)
    places = 2 * np.sort(rng.permutation(length // 2)[: 2 * pairs])
    order = rng.permutation(np.repeat(np.arange(pairs), 2))
    keys, values = rng.permutation(symbols.keys)[:pairs], rng.choice(symbols.values, pairs)
    tokens, distances = text.copy(), np.zeros(length, np.int32)
    stated: dict[int, int] = {}
    for place, pair in zip(places.tolist(), order.tolist()):
        tokens[place], tokens[place + 1] = keys[pair], values[pair]
        if pair in stated:
            distances[place + 1] = place - stated[pair]
        stated[pair] = place
    return Recall(tokens, distances)


def asked_at_the_end(
    rng: np.random.Generator, text: np.ndarray, symbols: Symbols, pairs: int
) -> tuple[Recall, np.ndarray]:
    """A text with pairs at all depths and, at its end, all of them asked for; and the same without the pairs.

    Returns:
        The row, and its tokens without the places that state the pairs: what the questions are worth without context.
    """
    length, asked = len(text), 2 * pairs
    depth = (np.arange(pairs) + rng.random(pairs)) / pairs
    places = (depth * (length - asked - 2) / 2).astype(int) * 2
    order = rng.permutation(pairs)
    keys, values = rng.permutation(symbols.keys)[:pairs], rng.choice(symbols.values, pairs)
    tokens, distances = text.copy(), np.zeros(length, np.int32)
    ends = length - asked + 2 * np.arange(pairs)
    tokens[ends], tokens[ends + 1] = keys[order], values[order]
    without = tokens.copy()
    tokens[places], tokens[places + 1] = keys, values
    distances[ends + 1] = ends - places[order]
    return Recall(tokens, distances), without
