"""Synthetic recall: rows in which a token follows from an earlier place of the same row.

A fact is one token, an answer; it tells the value of a key. A question, one token for each key, is followed by the
answer that the row has stated. Finding it takes one step of attention, by content, which models of a few million tokens
learn; pairs of a key and a value in two tokens take two (Olsson et al., arXiv 2209.11895), which they do not. Three
kinds: facts and questions in turn (multi-query recall, Arora et al., arXiv 2312.04927); a text with facts in it, each
of which is asked for once; and a sequence that repeats (copying).
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class Symbols:
    """Ids that no text has, from `first` on: a question for each key, then `values` answers for each key in turn."""

    first: int
    keys: int = 8
    values: int = 15

    @property
    def names(self) -> tuple[str, ...]:
        """What a tokenizer calls them, in the order of their ids."""
        answers = (f"<|answer_{key}_{value}|>" for key in range(self.keys) for value in range(self.values))
        return (*(f"<|question_{key}|>" for key in range(self.keys)), *answers)

    @property
    def count(self) -> int:
        return self.keys * (1 + self.values)

    @property
    def all(self) -> np.ndarray:
        return np.arange(self.first, self.first + self.count, dtype=np.int32)

    def questions(self, keys: np.ndarray) -> np.ndarray:
        return (self.first + keys).astype(np.int32)

    def draw_answers(self, rng: np.random.Generator) -> np.ndarray:
        """One answer for each key, int32 `[keys]`."""
        places = self.values * np.arange(self.keys) + rng.integers(0, self.values, self.keys)
        return (self.first + self.keys + places).astype(np.int32)


def named_symbols(ids: Mapping[str, int]) -> Symbols | None:
    """The symbols in a tokenizer's vocabulary, by their names; None if it has none."""
    keys, answers = (sum(name.startswith(f"<|{kind}_") for name in ids) for kind in ("question", "answer"))
    found = Symbols(ids.get("<|question_0|>", 0), keys, answers // max(keys, 1))
    return found if keys and all(ids.get(name) == i for i, name in enumerate(found.names, found.first)) else None


class Recall(NamedTuple):
    """Tokens int32 `[n]`, and for each that an earlier one determines its distance in tokens to that, else 0."""

    tokens: np.ndarray
    distances: np.ndarray


def stream(rng: np.random.Generator, length: int, symbols: Symbols) -> Recall:
    """Facts and questions in turn: three tenths are new facts, until all keys have one, the others questions."""
    answers, keys = symbols.draw_answers(rng), rng.permutation(symbols.keys)
    fresh, draws = rng.random(length) < 0.3, rng.random(length)
    tokens, distances = np.zeros(length + 1, np.int32), np.zeros(length + 1, np.int32)
    last: dict[int, int] = {}
    place = 0
    while place < length:
        if not last or (fresh[place] and len(last) < len(keys)):
            key = int(keys[len(last)])
        else:
            key = int(keys[int(draws[place] * len(last))])
            tokens[place] = symbols.questions(np.array(key))
            place += 1
            distances[place] = place - last[key]
        tokens[place], last[key] = answers[key], place
        place += 1
    return Recall(tokens[:length], distances[:length])


def copies(rng: np.random.Generator, length: int, symbols: Symbols) -> Recall:
    """A random sequence, of 4 symbols up to half of the row, again and again."""
    period = int(np.exp(rng.uniform(np.log(4), np.log(max(length // 2, 5)))))
    tokens = np.resize(rng.choice(symbols.all, period), length).astype(np.int32)
    # The first token of the first copy follows from nothing.
    distances = np.where(np.arange(length) > period, period, 0).astype(np.int32)
    return Recall(tokens, distances)


def facts(rng: np.random.Generator, text: np.ndarray, symbols: Symbols, count: int) -> Recall:
    """A text, int32 `[n]`, in which so many facts stand and, at random places after them, are asked for."""
    places = 2 * np.sort(rng.permutation(len(text) // 2)[: 2 * count])
    order = rng.permutation(np.repeat(np.arange(count), 2))
    keys, answers = rng.permutation(symbols.keys)[:count], symbols.draw_answers(rng)
    tokens, distances = text.copy(), np.zeros(len(text), np.int32)
    stated: dict[int, int] = {}
    for place, key in zip(places.tolist(), keys[order].tolist()):
        if key in stated:
            tokens[place] = symbols.questions(np.array(key))
            place += 1
            distances[place] = place - stated[key]
        tokens[place] = answers[key]
        stated[key] = place
    return Recall(tokens, distances)


def asked_at_the_end(
    rng: np.random.Generator, text: np.ndarray, symbols: Symbols, count: int
) -> tuple[Recall, np.ndarray]:
    """A text with facts at all depths and, at its end, all of them asked for; and the same without the facts.

    Returns:
        The row, and its tokens without the facts: what the answers are worth without context.
    """
    length, asked = len(text), 2 * count
    edges = np.linspace(0, length - asked, count + 1).astype(int)
    places = rng.integers(edges[:-1], edges[1:])
    order = rng.permutation(count)
    keys, answers = rng.permutation(symbols.keys)[:count], symbols.draw_answers(rng)
    tokens, distances = text.copy(), np.zeros(length, np.int32)
    ends = length - asked + 2 * np.arange(count)
    tokens[ends], tokens[ends + 1] = symbols.questions(keys[order]), answers[keys[order]]
    without = tokens.copy()
    tokens[places] = answers[keys]
    distances[ends + 1] = ends + 1 - places[order]
    return Recall(tokens, distances), without
