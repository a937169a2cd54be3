"""RULER (Hsieh et al., arXiv 2404.06654): its 13 tasks, their samples and scores.

Samples are generated with `random.Random`, seeded by a text of task, length, seed and number, so that they are the
same on every machine and in every process, and each is independent of how many others there are.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from random import Random

from rope_jax.data.tokenizer import Tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.draft import Draft, fitted_samples
from rope_jax.evaluation.haystack import ESSAYS_COMMAND, Haystack, read_haystack
from rope_jax.evaluation.ruler.common_words import common_words_draft
from rope_jax.evaluation.ruler.frequent_words import frequent_words_draft
from rope_jax.evaluation.ruler.needles import NeedleTask, needle_draft
from rope_jax.evaluation.ruler.questions import (
    HOTPOTQA_COMMAND,
    SQUAD_COMMAND,
    QuestionSet,
    question_draft,
    read_hotpotqa,
    read_squad,
)
from rope_jax.evaluation.ruler.variables import variables_draft
from rope_jax.evaluation.ruler.words import WordList, load_words
from rope_jax.evaluation.sample import Sample

NEEDLE_TASKS = {
    "niah_single_1": NeedleTask("noise"),
    "niah_single_2": NeedleTask("essay"),
    "niah_single_3": NeedleTask("essay", value_kind="uuids"),
    "niah_multikey_1": NeedleTask("essay", keys=4),
    "niah_multikey_2": NeedleTask("needle"),
    "niah_multikey_3": NeedleTask("needle", key_kind="uuids", value_kind="uuids"),
    "niah_multivalue": NeedleTask("essay", values=4),
    "niah_multiquery": NeedleTask("essay", keys=4, queries=4),
}
# Tokens to generate.
TASKS: Mapping[str, int] = {**dict.fromkeys(NEEDLE_TASKS, 128), "vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}

QUESTION_TASKS = ("qa_1", "qa_2")


@dataclasses.dataclass(frozen=True)
class Sources:
    """What prompts are made of; tasks whose source is None cannot be run.

    Attributes:
        words: for keys and lists.
        essays: text to hide needles in.
        squad: questions of qa_1.
        hotpotqa: questions of qa_2.
    """

    words: WordList
    essays: Haystack | None = None
    squad: QuestionSet | None = None
    hotpotqa: QuestionSet | None = None


def read_sources(essays: Path | None, squad: Path | None, hotpotqa: Path | None, max_length: int) -> Sources:
    """Reads the files that the tasks need.

    Args:
        essays: folder of texts, see `rope_jax.evaluation.haystack.read_haystack`; or None.
        squad: SQuAD's `dev-v2.0.json`, or None.
        hotpotqa: HotpotQA's `hotpot_dev_distractor_v1.json`, or None.
        max_length: the longest prompt, tokens; essays are read as far as it needs.

    Returns:
        The sources.

    Raises:
        InputError: if a file that is named is missing or not what it should be.
    """
    return Sources(
        words=load_words(),
        essays=None if essays is None else read_haystack(essays, max_length),
        squad=None if squad is None else read_squad(squad),
        hotpotqa=None if hotpotqa is None else read_hotpotqa(hotpotqa),
    )


def not_run(sources: Sources) -> dict[str, str]:
    """The tasks that cannot be run, and why: which file is missing and the command that gets it."""
    reasons = {}
    for task in TASKS:
        kind = NEEDLE_TASKS.get(task)
        if kind is not None and kind.haystack == "essay" and sources.essays is None:
            reasons[task] = (
                f"no folder of essays is named (any folder of .txt files will do); RULER's: {ESSAYS_COMMAND}"
            )
        if task == "qa_1" and sources.squad is None:
            reasons[task] = f"no file of SQuAD is named; get it: {SQUAD_COMMAND.format(path='dev-v2.0.json')}"
        if task == "qa_2" and sources.hotpotqa is None:
            name = "hotpot_dev_distractor_v1.json"
            reasons[task] = f"no file of HotpotQA is named; get it: {HOTPOTQA_COMMAND.format(path=name)}"
    return reasons


def ruler_samples(
    task: str, tokenizer: Tokenizer, length: int, count: int, sources: Sources, seed: int = 42
) -> Iterator[Sample]:
    """Generates the samples of a task, as long as fit a length.

    Args:
        task: one of `TASKS`.
        tokenizer: the model's.
        length: tokens that prompt, BOS not counted, and answer may take together.
        count: number of samples, at least 1; RULER has 500. A QA task takes the questions in the order of their
            file, passes over those whose documents do not fit, and has no more samples than there are others.
        sources: what prompts are made of.
        seed: of all draws.

    Returns:
        The samples; the first is made at once, the others one by one. `details` holds the prompt's
        `prompt_tokens`, the `units` of filler, and where words were drawn the name of their list, `words`.

    Raises:
        InputError: if there is no such task, its source is missing, or not even its smallest prompt fits.
    """
    if task not in TASKS:
        raise InputError(f"{task} is not a task of RULER, which are {', '.join(TASKS)}")
    if (reason := not_run(sources).get(task)) is not None:
        raise InputError(f"{task} of RULER cannot be run: {reason}")
    questions = {"qa_1": sources.squad, "qa_2": sources.hotpotqa}.get(task)
    return fitted_samples(
        _drafts(task, sources, length, lambda text: len(tokenizer.encode(text))),
        itertools.count() if questions is None else range(len(questions.questions)),
        benchmark="RULER",
        task=task,
        tokenizer=tokenizer,
        length=length,
        count=count,
        max_new_tokens=TASKS[task],
        seed=seed,
        skip_too_long=questions is not None,
    )


def ruler_score(sample: Sample, prediction: str) -> float:
    """Score of a prediction for a sample of `ruler_samples`.

    Args:
        sample: the sample.
        prediction: generated text.

    Returns:
        In [0, 1]: the share of the references that it contains, upper and lower case being the same; for the QA
        tasks whether it contains one of them.
    """
    text = prediction.lower()
    found = [reference.lower() in text for reference in sample.references]
    return float(any(found)) if sample.task in QUESTION_TASKS else sum(found) / len(found)


def _drafts(
    task: str, sources: Sources, length: int, count_tokens: Callable[[str], int]
) -> Callable[[int, Random], Draft]:
    """From the number of a sample and a generator to its draft."""
    if task in NEEDLE_TASKS:
        return lambda _, rng: needle_draft(NEEDLE_TASKS[task], rng, sources.words, sources.essays)
    if task == "vt":
        return lambda _, rng: variables_draft(rng, count_tokens)
    if task == "cwe":
        return lambda _, rng: common_words_draft(rng, sources.words, length)
    if task == "fwe":
        return lambda _, rng: frequent_words_draft(rng, length - TASKS[task])
    source = sources.squad if task == "qa_1" else sources.hotpotqa
    document_tokens = cache(lambda i: count_tokens(f"Document 10:\n{source.documents[i]}\n\n"))
    return lambda index, rng: question_draft(rng, source, source.questions[index], document_tokens)
