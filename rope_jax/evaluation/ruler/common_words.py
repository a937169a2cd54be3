"""RULER's common words extraction: the ten words that a long numbered list has most often."""

from __future__ import annotations

from itertools import islice
from random import Random

from rope_jax.evaluation.draft import Draft
from rope_jax.evaluation.ruler.words import WordList

TEMPLATE = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 "
    "words that appear most often in the list are:"
)
COMMON = 10
LONG = 4096  # Lengths from which on words are repeated more often.


def common_words_draft(rng: Random, words: WordList, length: int) -> Draft:
    """Draws the common words and a worked example; units are words of the list that are not common."""
    often, seldom = (30, 3) if length >= LONG else (6, 1)
    others, example_often, example_seldom = (30, 10, 3) if length >= LONG else (10, 3, 1)
    drawn = list(islice(words.stream(rng), COMMON + others))
    shown = _numbered(rng.random(), drawn[:COMMON], example_often, drawn[COMMON:], example_seldom)
    answer = " ".join(f"{i}. {word}" for i, word in enumerate(drawn[:COMMON], 1))
    example = f"{TEMPLATE.format(context=shown)} {answer}\n"
    shuffle_seed = rng.random()
    stream = words.stream(rng)
    common = tuple(islice(stream, COMMON))
    rare: list[str] = []

    def build(units: int) -> str:
        # Drawn as far as needed, so that fewer units are the first ones of more.
        rare.extend(islice(stream, max(units - len(rare), 0)))
        return example + TEMPLATE.format(context=_numbered(shuffle_seed, common, often, rare[:units], seldom))

    return Draft(build, common, least=1, most=words.count - COMMON, details={"words": words.name})


def _numbered(seed: float, common, often: int, rare, seldom: int) -> str:
    listed = [*common] * often + [*rare] * seldom
    Random(seed).shuffle(listed)
    return " ".join(f"{i}. {word}" for i, word in enumerate(listed, 1))
