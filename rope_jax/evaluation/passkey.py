"""Passkey retrieval: a number hidden in repetitive text, asked for at the end.

The task of Mohtashami and Jaggi (arXiv 2305.16300) in the wording of YaRN's script (arXiv 2309.00071), with
more trials, spread evenly over depth, and seeded. With the LLaMA2 tokenizer and the key in the middle, 14000,
28000 and 56000 characters of garbage make prompts of 3807, 7539 and 15005 tokens, BOS included.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from rope_jax.errors import InputError
from rope_jax.evaluation.answering import Prediction, with_bos
from rope_jax.evaluation.benchmark import Part, Questions, Setting, check_positive
from rope_jax.evaluation.draft import SampleSpec
from rope_jax.evaluation.intervals import wilson
from rope_jax.evaluation.sample import Sample
from rope_jax.evaluation.sizing import spread

INSTRUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
GARBAGE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"

# The five-digit numbers of the 1 .. 50000 that the script draws from: papers speak of five digits, and keys of
# one length are equally hard.
KEYS = (10000, 50000)


@dataclasses.dataclass(frozen=True)
class Passkey(Questions):
    """Passkey retrieval.

    Attributes:
        lengths: tokens of prompt and answer; empty for those of the setting.
        trials: samples per length; use at least 50, for ten cannot tell 90% from 60%.
        depths: strata of depth, which share the trials evenly.
        new_tokens: tokens of the answer: 10 as in the script, more where a token is a byte.
    """

    title = "Passkey retrieval"
    note = (
        "A five-digit key hidden in repeated filler; it is found if the first number in the greedy answer is the key."
    )
    tasks = ("passkey",)

    lengths: tuple[int, ...] = ()
    trials: int = 50
    depths: int = 10
    new_tokens: int = 10

    def __post_init__(self):
        check_positive(self, "trials", "depths", "new_tokens")

    @property
    def bins(self) -> int:
        return self.depths

    def parts(self, setting: Setting) -> list[Part]:
        def make(length: int) -> Iterator[Sample]:
            return passkey_samples(setting.spec(length, self.trials), self.depths, self.new_tokens)

        return [Part("passkey", length, partial(make, length)) for length in self.lengths or setting.lengths]

    def score(self, sample: Sample, prediction: str) -> float:
        """1 if the first number in a prediction is the key, else 0."""
        found = re.search(r"[0-9]+", prediction)
        return float(found is not None and found.group() == sample.references[0])


def passkey_samples(spec: SampleSpec, depths: int = 10, new_tokens: int = 10) -> Iterator[Sample]:
    """Samples of one length, BOS included, as long as fit it, which depend on the seed and the length only.

    Samples take the strata of depth in turn, in an order whose every beginning is spread, and fall anywhere within one.
    `details` holds the `depth`, the share of the garbage in front of the key, in [0, 1), and the prompt's
    `prompt_tokens`. The first sample is made at once, the others one by one; InputError if the smallest prompt does not
    fit.
    """
    rng = np.random.default_rng([spec.seed, spec.length])
    keys = rng.integers(KEYS[0], KEYS[1] + 1, spec.count)
    places = (np.resize(spread(depths), spec.count) + rng.uniform(size=spec.count)) / depths
    budget = spec.length - new_tokens

    def count(key: int, garbage: int, depth: float) -> int:
        return len(with_bos(spec.tokenizer, prompt_text(key, garbage, depth)))

    least = max(count(int(key), 0, 0.0) for key in keys)
    if least > budget:
        raise InputError(
            f"`lengths` has {spec.length}, too few tokens for the question without garbage: it takes {least} and the "
            f"answer {new_tokens}, so use lengths of at least {least + new_tokens}"
        )
    # Depth and key shift the count by a few tokens, so one search serves all samples.
    most = _largest(lambda n: count(int(keys[0]), n, 0.5) <= budget)

    def generate() -> Iterator[Sample]:
        for index, (key, depth) in enumerate(zip(keys.tolist(), places.tolist())):
            garbage = most
            while (tokens := count(key, garbage, depth)) > budget:
                # At least a character goes for each token too many; without garbage the prompt fits.
                garbage = max(0, garbage - (tokens - budget))
            yield Sample(
                id=f"passkey/{spec.length}/{index}",
                task="passkey",
                prompt=prompt_text(key, garbage, depth),
                references=(str(key),),
                max_new_tokens=new_tokens,
                length=spec.length,
                details={"depth": depth, "prompt_tokens": tokens},
            )

    return generate()


def prompt_text(key: int, n_garbage: int, depth: float) -> str:
    """The five lines of the task, with a share `depth` of the characters of garbage in front of the key."""
    before = round(depth * n_garbage)
    # Both parts start at the first sentence: the script cuts each from the front of the endless text.
    return "\n".join((INSTRUCTION, garbage(before), NEEDLE.format(key=key), garbage(n_garbage - before), QUESTION))


def garbage(characters: int) -> str:
    """The first `characters` characters of the endlessly repeated garbage."""
    unit = GARBAGE + " "
    return (unit * (characters // len(unit) + 1))[:characters]


def retrieval_grid(
    benchmark: Passkey, samples: Sequence[Sample], predictions: Mapping[str, Prediction], seed: int = 0
) -> dict:
    """Retrieval over a grid of lengths and depths, with every trial; samples come length by length.

    Returns:
        JSON-able: `lengths`; `depths`, the ends of each stratum; `cells` `[lengths][depths]` and `per_length` of
        `successes`, `trials`, `rate` (None without a trial) and its 95% Wilson `interval`; `trials`; `max_new_tokens`
        and the `seed` of the samples.
    """
    bins = benchmark.bins
    hits: dict[int, list[list[float]]] = {sample.length: [[] for _ in range(bins)] for sample in samples}
    for sample in samples:
        hits[sample.length][min(int(sample.details["depth"] * bins), bins - 1)].append(predictions[sample.id].score)
    return {
        "lengths": list(hits),
        "depths": [[b / bins, (b + 1) / bins] for b in range(bins)],
        "cells": [[_rate(cell) for cell in row] for row in hits.values()],
        "per_length": [_rate([*itertools.chain(*row)]) for row in hits.values()],
        "trials": [
            {
                "length": sample.length,
                "prompt_tokens": sample.details["prompt_tokens"],
                "depth": sample.details["depth"],
                "key": int(sample.references[0]),
                "answer": predictions[sample.id].prediction,
                "correct": bool(predictions[sample.id].score),
            }
            for sample in samples
        ],
        "max_new_tokens": benchmark.new_tokens,
        "seed": seed,
    }


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest n that fits, given that 0 does: by bisection, on whose path the published prompts depend."""
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _rate(scores: Sequence[float]) -> dict:
    successes, trials = int(sum(scores)), len(scores)
    rate = successes / trials if trials else None
    return {"successes": successes, "trials": trials, "rate": rate, "interval": list(wilson(successes, trials))}
