"""Passkey retrieval: a number hidden in repetitive text, asked for at the end.

The task of Mohtashami and Jaggi (arXiv 2305.16300) in the wording of YaRN's script (arXiv 2309.00071), with
more trials, spread evenly over depth, and seeded. With the LLaMA2 tokenizer and the key in the middle, 14000,
28000 and 56000 characters of garbage make prompts of 3807, 7539 and 15005 tokens, BOS included.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from rope_jax.errors import InputError
from rope_jax.evaluation.intervals import wilson

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
GARBAGE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"

# The five-digit numbers of the 1 .. 50000 that the script draws from: papers speak of five digits, and keys of
# one length are equally hard.
KEYS = (10000, 50000)


class Tokenizer(Protocol):
    """What the task needs of a tokenizer; `bos_id` is None if it has none."""

    bos_id: int | None

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, ids: np.ndarray) -> str: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """One trial before it is run.

    Attributes:
        key: the number to retrieve.
        depth: share of the garbage in front of it, in [0, 1).
        bin: stratum of the depth.
        n_garbage: characters of garbage.
        tokens: int32 `[n]`, BOS included.
    """

    key: int
    depth: float
    bin: int
    n_garbage: int
    tokens: np.ndarray


@dataclasses.dataclass(frozen=True)
class Trial:
    """One trial after it was run.

    Attributes:
        length: tokens that prompt and answer may take together.
        prompt_tokens: tokens of the prompt, BOS included.
        depth: share of the garbage in front of the key.
        key: the number to retrieve.
        answer: the generated text.
        correct: whether the first number in it is the key.
    """

    length: int
    prompt_tokens: int
    depth: float
    key: int
    answer: str
    correct: bool


@dataclasses.dataclass(frozen=True)
class Rate:
    """A share of successes with its 95% Wilson interval; None where there was no trial."""

    successes: int
    trials: int
    rate: float | None
    interval: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class PasskeyResult:
    """Retrieval over a grid of lengths and depths.

    Attributes:
        lengths: tokens that prompt and answer may take together.
        depths: lower and upper depth of each stratum, shares of the garbage before the key.
        cells: `[lengths][depths]`.
        per_length: `[lengths]`, over all depths.
        trials: every trial, length by length.
        max_new_tokens: tokens generated.
        seed: of keys and depths.
    """

    lengths: tuple[int, ...]
    depths: tuple[tuple[float, float], ...]
    cells: tuple[tuple[Rate, ...], ...]
    per_length: tuple[Rate, ...]
    trials: tuple[Trial, ...]
    max_new_tokens: int
    seed: int


def passkey(
    generate: Callable[[list[np.ndarray]], list[np.ndarray]],
    tokenizer: Tokenizer,
    lengths: Sequence[int],
    trials: int,
    seed: int = 0,
    *,
    depth_bins: int = 10,
    max_new_tokens: int = 10,
    progress: Callable[[Iterable], Iterable] = iter,
) -> PasskeyResult:
    """Runs the task at every length.

    All prompts are built, hence all lengths checked, before the first is run. The trials at a length depend on
    seed and length only, not on the other lengths.

    Args:
        generate: greedy continuation, at least `max_new_tokens` long, of each of a list of int32 prompts.
        tokenizer: encodes without special tokens; its BOS goes in front of each prompt.
        lengths: tokens that prompt and answer may take together.
        trials: per length; use at least 50, for ten cannot tell 90% from 60%.
        seed: of keys and depths.
        depth_bins: strata of depth, which share the trials evenly.
        max_new_tokens: tokens of the answer that count: 10 as in the script, more where a token is a byte.
        progress: wraps the iterable of lengths, for instance `tqdm`.

    Returns:
        The grid, its margins and all trials.

    Raises:
        InputError: if the smallest prompt does not fit a length, or there are no trials or strata.
    """
    prompts = [
        make_prompts(tokenizer, length, trials, seed, depth_bins=depth_bins, max_new_tokens=max_new_tokens)
        for length in lengths
    ]
    results: list[Trial] = []
    cells, per_length = [], []
    for length, batch in progress(list(zip(lengths, prompts))):
        answers = generate([prompt.tokens for prompt in batch])
        texts = [tokenizer.decode(np.asarray(answer)[:max_new_tokens]) for answer in answers]
        correct = [found_number(text) == str(prompt.key) for text, prompt in zip(texts, batch)]
        results += [
            Trial(int(length), len(p.tokens), p.depth, p.key, text, hit) for p, text, hit in zip(batch, texts, correct)
        ]
        bins = [prompt.bin for prompt in batch]
        runs = np.bincount(bins, minlength=depth_bins)
        hits = np.bincount(bins, correct, minlength=depth_bins)
        cells.append(tuple(_rate(int(h), int(n)) for h, n in zip(hits, runs)))
        per_length.append(_rate(sum(correct), len(batch)))
    return PasskeyResult(
        lengths=tuple(int(length) for length in lengths),
        depths=tuple((b / depth_bins, (b + 1) / depth_bins) for b in range(depth_bins)),
        cells=tuple(cells),
        per_length=tuple(per_length),
        trials=tuple(results),
        max_new_tokens=max_new_tokens,
        seed=seed,
    )


def make_prompts(
    tokenizer: Tokenizer,
    length: int,
    trials: int,
    seed: int,
    *,
    depth_bins: int = 10,
    max_new_tokens: int = 10,
) -> list[Prompt]:
    """Prompts for one length, as long as fit it, one stratum of depth after another.

    Args:
        tokenizer: see `passkey`.
        length: tokens that prompt, BOS included, and answer may take together.
        trials: number of prompts.
        seed: of keys and depths.
        depth_bins: strata of depth; trial i falls into stratum i modulo their number, anywhere within it.
        max_new_tokens: tokens of the answer.

    Returns:
        The prompts.

    Raises:
        InputError: if the smallest prompt does not fit, or there are no trials or strata.
    """
    for name, value in (("passkey_trials", trials), ("passkey_depth_bins", depth_bins)):
        if value < 1:
            raise InputError(f"eval.{name} is {value}: it must be at least 1")
    rng = np.random.default_rng([seed, length])
    keys = rng.integers(KEYS[0], KEYS[1] + 1, trials)
    bins = np.arange(trials) % depth_bins
    depths = (bins + rng.uniform(size=trials)) / depth_bins
    budget = length - max_new_tokens

    least = max(len(encode_prompt(tokenizer, int(key), 0, 0.0)) for key in keys)
    if least > budget:
        raise InputError(
            f"eval.passkey_lengths has {length}, which does not even hold the question without garbage: it "
            f"takes {least} tokens and the answer {max_new_tokens}, so use lengths of at least "
            f"{least + max_new_tokens}"
        )
    # Depth and key shift the count by a few tokens, so one search serves all trials of a length.
    most = _largest(lambda n: len(encode_prompt(tokenizer, int(keys[0]), n, 0.5)) <= budget)
    return [
        _fit_prompt(tokenizer, int(key), float(depth), int(bin), most, budget)
        for key, depth, bin in zip(keys, depths, bins)
    ]


def prompt_text(key: int, n_garbage: int, depth: float) -> str:
    """The five lines of the task.

    Args:
        key: the number to hide.
        n_garbage: characters of garbage before and after it together.
        depth: share of them in front, in [0, 1].

    Returns:
        The text, which ends where the answer begins.
    """
    before = round(depth * n_garbage)
    # Both parts start at the first sentence: the script cuts each from the front of the endless text.
    return "\n".join((TASK, garbage(before), NEEDLE.format(key=key), garbage(n_garbage - before), QUESTION))


def garbage(characters: int) -> str:
    """The first `characters` characters of the endlessly repeated garbage."""
    unit = GARBAGE + " "
    return (unit * (characters // len(unit) + 1))[:characters]


def encode_prompt(tokenizer: Tokenizer, key: int, n_garbage: int, depth: float) -> np.ndarray:
    """`prompt_text` as int32 `[n]` tokens, with the tokenizer's BOS, if any, in front."""
    tokens = np.asarray(tokenizer.encode(prompt_text(key, n_garbage, depth)), np.int32)
    return tokens if tokenizer.bos_id is None else np.concatenate([[np.int32(tokenizer.bos_id)], tokens])


def found_number(text: str) -> str | None:
    """The first run of digits in an answer, or None."""
    match = re.search(r"[0-9]+", text)
    return match.group() if match else None


def _fit_prompt(tokenizer, key, depth, bin, n_garbage, budget):
    tokens = encode_prompt(tokenizer, key, n_garbage, depth)
    while len(tokens) > budget:
        # At least a character goes for each token too many; without garbage the prompt is known to fit.
        n_garbage = max(0, n_garbage - (len(tokens) - budget))
        tokens = encode_prompt(tokenizer, key, n_garbage, depth)
    return Prompt(key, depth, bin, n_garbage, tokens)


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest n that fits, given that 0 does."""
    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _rate(successes: int, trials: int) -> Rate:
    return Rate(successes, trials, successes / trials if trials else None, wilson(successes, trials))
