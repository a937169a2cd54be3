"""Prompts whose filler can still grow, and filling them up to a length."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from random import Random
from typing import Any

from rope_jax.data.tokenizer import Tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.sample import Sample
from rope_jax.evaluation.sizing import largest_fit

# A prompt that fills less than this share of its length is drawn again: where a unit is long, whether whole units
# fill a length is chance, and other keys have other tokens.
FILLED = 0.99
ATTEMPTS = 16


@dataclasses.dataclass(frozen=True)
class Draft:
    """A question with its answers, for a number of units of filler, `least` to `most`, that is still open.

    `build` gives the prompt with that many units, the same each time. `refine` takes the units that fit and the tokens
    left over, and gives prompts that may leave fewer, the best ones first.
    """

    build: Callable[[int], str]
    references: tuple[str, ...]
    least: int
    most: int | None = None
    refine: Callable[[int, int], Iterator[str]] | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FittedPrompt:
    """A draft with its number of units settled, the prompt, and its tokens."""

    prompt: str
    tokens: int
    units: int
    draft: Draft


@dataclasses.dataclass(frozen=True)
class SampleSpec:
    """How many samples of which length: tokens that prompt, BOS not counted, and answer may take together."""

    tokenizer: Tokenizer
    length: int
    count: int
    seed: int = 42


def fit_draft(
    make: Callable[[Random], Draft], seed: str, count_tokens: Callable[[str], int], budget: int
) -> FittedPrompt:
    """Draws prompts until one fills 99% of the budget in tokens, each with as many units as fit.

    `seed` is a text, so that draws are the same on every machine and in every process. The best of 16 is taken if none
    fills the budget, and one of more tokens than the budget if not even the smallest prompt fits.
    """
    best = smallest = None
    for attempt in range(ATTEMPTS):
        draft = make(Random(f"{seed} {attempt}"))
        units = largest_fit(lambda n, draft=draft: count_tokens(draft.build(n)), budget, draft.least, draft.most)
        prompt = draft.build(draft.least if units is None else units)
        fitted = FittedPrompt(prompt, count_tokens(prompt), draft.least if units is None else units, draft)
        if units is None:
            if smallest is not None and smallest.tokens == fitted.tokens:
                break  # Drawing again changes nothing.
            smallest = fitted
            continue
        for finer in draft.refine(units, budget - fitted.tokens) if draft.refine else ():
            tokens = count_tokens(finer)
            if fitted.tokens < tokens <= budget:
                fitted = dataclasses.replace(fitted, prompt=finer, tokens=tokens)
                break
        if best is None or fitted.tokens > best.tokens:
            best = fitted
        if best.tokens >= FILLED * budget or units == draft.most:
            break
    fitted = best or smallest
    assert fitted is not None, "at least one prompt is drawn"
    return fitted


def fitted_samples(
    make: Callable[[int, Random], Draft],
    indices: Iterable[int],
    spec: SampleSpec,
    *,
    benchmark: str,
    task: str,
    max_new_tokens: int,
    stop: tuple[str, ...] = (),
    skip_too_long: bool = False,
) -> Iterator[Sample]:
    """Samples of a task, each as long as fits a length; the first is made at once, the others one by one.

    Their `details` hold those of the draft, the `prompt_tokens` and the `units` of filler. There are fewer than wanted
    if `indices`, the numbers of samples to draw, end before.

    `make` draws the draft of a sample from its number. Names of benchmark and task are part of the seed; ids are
    `task/length/index`. With `skip_too_long` a sample that does not fit is skipped, as long as another one fits.
    """
    name = f"{benchmark} {task}" if benchmark != task else task
    length = spec.length

    def generate() -> Iterator[Sample]:
        made, smallest = 0, None
        for index in indices:
            if made == spec.count:
                return
            fitted = fit_draft(
                partial(make, index),
                f"{benchmark} {task} {length} {spec.seed} {index}",
                lambda text: len(spec.tokenizer.encode(text)),
                length - max_new_tokens,
            )
            if fitted.tokens + max_new_tokens > length:
                smallest = fitted.tokens if smallest is None else min(fitted.tokens, smallest)
                if skip_too_long:
                    continue
                break
            made += 1
            yield Sample(
                id=f"{task}/{length}/{index}",
                task=task,
                prompt=fitted.prompt,
                references=fitted.draft.references,
                max_new_tokens=max_new_tokens,
                length=length,
                stop=stop,
                details={**fitted.draft.details, "prompt_tokens": fitted.tokens, "units": fitted.units},
            )
        if smallest is not None and not (made and skip_too_long):
            raise InputError(
                f"{name} does not fit a length of {length} tokens: its smallest prompt takes {smallest} and the answer "
                f"{max_new_tokens}, so use `lengths` of at least {smallest + max_new_tokens}",
                field="lengths",
            )

    samples = generate()
    return itertools.chain([next(samples)], samples)
