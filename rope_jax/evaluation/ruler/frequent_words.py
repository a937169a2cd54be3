"""RULER's frequent words extraction: the three most frequent words of a coded text with Zipf's frequencies."""

from __future__ import annotations

import math
import string
from random import Random

from rope_jax.evaluation.draft import Draft

TEMPLATE = (
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
        return TEMPLATE.format(context=" ".join(coded))

    return Draft(build, tuple(ranked[1:4]), least=LEAST)
