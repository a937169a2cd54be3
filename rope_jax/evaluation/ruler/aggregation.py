"""RULER's aggregation tasks: the ten words that a long numbered list has most often, and the three most frequent words
of a coded text with Zipf's frequencies."""

import math
import string
from itertools import islice
from random import Random

from rope_jax.evaluation.draft import Draft
from rope_jax.evaluation.ruler.words import WordList

COMMON_TEMPLATE = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 "
    "words that appear most often in the list are:"
)
COMMON = 10
LONG = 4096  # Lengths from which on words are repeated more often.

FREQUENT_TEMPLATE = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the "
    "three most frequently appeared words in the above coded text? Answer: According to the coded text above, the "
    "three most frequently appeared words are:"
)
LETTERS = 6
DOTS = "..."  # Takes the place of the most frequent word.
TOKENS_PER_WORD = 50  # Of the prompt, to every word of the vocabulary.
ZETA = math.pi**2 / 6  # Riemann's zeta(2), the sum of all frequencies 1 / rank**2.

# From here on the fourth word, the last to be found, always is more frequent than the fifth, for
# n / (16 zeta) and n / (25 zeta) then differ by one at least.
LEAST = math.ceil(ZETA / (1 / 16 - 1 / 25))


def common_words_draft(rng: Random, words: WordList, length: int) -> Draft:
    """Draws the common words and a worked example; units are words of the list that are not common."""
    often, seldom = (30, 3) if length >= LONG else (6, 1)
    others, example_often, example_seldom = (30, 10, 3) if length >= LONG else (10, 3, 1)
    drawn = list(islice(words.stream(rng), COMMON + others))
    shown = _numbered(rng.random(), drawn[:COMMON], example_often, drawn[COMMON:], example_seldom)
    answer = " ".join(f"{i}. {word}" for i, word in enumerate(drawn[:COMMON], 1))
    example = f"{COMMON_TEMPLATE.format(context=shown)} {answer}\n"
    shuffle_seed = rng.random()
    stream = words.stream(rng)
    common = tuple(islice(stream, COMMON))
    rare: list[str] = []

    def build(units: int) -> str:
        # Drawn as far as needed, so that fewer units are the first ones of more.
        rare.extend(islice(stream, max(units - len(rare), 0)))
        return example + COMMON_TEMPLATE.format(context=_numbered(shuffle_seed, common, often, rare[:units], seldom))

    return Draft(build, common, least=1, most=words.count - COMMON, details={"words": words.name})


def frequent_words_draft(rng: Random, prompt_tokens: int) -> Draft:
    """Draws a vocabulary.

    A unit is a coded word before rounding down: rank k appears `floor(n / (zeta(2) k^2))` times.
    """
    vocabulary: dict[str, None] = {}  # Ordered, unlike a set, in every process.
    while len(vocabulary) < max(prompt_tokens // TOKENS_PER_WORD, 5):
        vocabulary["".join(rng.choices(string.ascii_lowercase, k=LETTERS))] = None
    ranked = [DOTS, *list(vocabulary)[1:]]
    shuffle_seed = rng.random()

    def build(units: int) -> str:
        coded = [word for rank, word in enumerate(ranked, 1) for _ in range(int(units / (ZETA * rank**2)))]
        Random(shuffle_seed).shuffle(coded)
        return FREQUENT_TEMPLATE.format(context=" ".join(coded))

    return Draft(build, tuple(ranked[1:4]), least=LEAST)


def _numbered(seed: float, common, often: int, rare, seldom: int) -> str:
    listed = [*common] * often + [*rare] * seldom
    Random(seed).shuffle(listed)
    return " ".join(f"{i}. {word}" for i, word in enumerate(listed, 1))
