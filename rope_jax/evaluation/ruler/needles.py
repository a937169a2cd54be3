"""RULER's eight needle-in-a-haystack tasks."""

import dataclasses
import uuid
from random import Random

import numpy as np

from rope_jax.evaluation.draft import Draft
from rope_jax.evaluation.haystack import Haystack
from rope_jax.evaluation.ruler.words import WordList

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. I will quiz you about the "
    "{kind} afterwards.\n{context}\nWhat is the special magic {kind} for {query} mentioned in the provided text? "
    "The special magic {kind} for {query} mentioned in the provided text is"
)
SEVERAL = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I will quiz you about "
    "the {kind} afterwards.\n{context}\nWhat are all the special magic {kind} for {query} mentioned in the provided "
    "text? The special magic {kind} for {query} mentioned in the provided text are"
)
DEPTHS = tuple(int(depth) for depth in np.round(np.linspace(0, 100, 40)))


@dataclasses.dataclass(frozen=True)
class NeedleTask:
    """A variant of the task: how many keys, values of each, and keys asked for.

    The haystack `noise` repeats a line, `essay` is running text, `needle` is made of other needles.
    """

    haystack: str
    key_kind: str = "words"
    value_kind: str = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


def needle_draft(task: NeedleTask, rng: Random, words: WordList, essays: Haystack | None) -> Draft:
    """Draws keys, values and places; units are words of an essay, otherwise lines."""
    used: set[str] = set()

    def draw(kind: str) -> str:
        while (text := _draw(kind, rng, words)) in used:
            pass
        used.add(text)
        return text

    def needle(key: str, value: str) -> str:
        return NEEDLE.format(kind=task.value_kind, key=key, value=value)

    hidden = {draw(task.key_kind): [draw(task.value_kind) for _ in range(task.values)] for _ in range(task.keys)}
    needles = [needle(key, value) for key, values in hidden.items() for value in values]
    rng.shuffle(needles)
    asked = rng.sample(list(hidden), task.queries)
    template, kind = (ONE, task.value_kind[:-1]) if task.queries * task.values == 1 else (SEVERAL, task.value_kind)
    query = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
    depths = sorted(rng.sample(DEPTHS, len(needles)))
    place_seed = rng.random()
    others: list[str] = []

    def context(units: int) -> str:
        if task.haystack == "essay":
            assert essays is not None, "essays are checked before"
            return essays.hide(needles, units, depths)
        if task.haystack == "needle":
            # Drawn as far as needed, so that fewer units are the first ones of more.
            others.extend(needle(draw(task.key_kind), draw(task.value_kind)) for _ in range(units - len(others)))
            lines = others[:units]
        else:
            lines = [NOISE] * units
        for place, line in zip(sorted(Random(place_seed).sample(range(units), len(needles)), reverse=True), needles):
            lines.insert(place, line)
        return "\n".join(lines)

    return Draft(
        build=lambda units: template.format(kind=kind, context=context(units), query=query),
        references=tuple(value for key in asked for value in hidden[key]),
        least=len(needles),
        details={"words": words.name},
    )


def _draw(kind: str, rng: Random, words: WordList) -> str:
    if kind == "words":
        return words.compound(rng)
    if kind == "numbers":
        return str(rng.randint(10**6, 10**7 - 1))
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
