"""RULER (Hsieh et al., arXiv 2404.06654): its 13 tasks, their samples and scores.

Samples are generated with `random.Random`, seeded by a text of task, length, seed and number, so that they are the
same on every machine and in every process, and each is independent of how many others there are.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from random import Random
from typing import Any

from rope_jax.errors import InputError
from rope_jax.evaluation.benchmark import DrawnQuestions
from rope_jax.evaluation.data_files import named_path
from rope_jax.evaluation.draft import Draft, SampleSpec, fitted_samples
from rope_jax.evaluation.haystack import ESSAYS_COMMAND, Haystack, read_haystack
from rope_jax.evaluation.ruler.aggregation import common_words_draft, frequent_words_draft
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
# Tokens of the answer.
TASKS: Mapping[str, int] = {**dict.fromkeys(NEEDLE_TASKS, 128), "vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}

QUESTION_TASKS = {"qa_1": "squad", "qa_2": "hotpotqa"}

# Fields of `Sources` that some tasks need: what they are made from, and the command that gets it.
FILES = {
    "essays": ("a folder of essays, for which any folder of .txt files will do; this gets RULER's", ESSAYS_COMMAND),
    "squad": ("the file of SQuAD 2.0's questions", SQUAD_COMMAND.format(path="dev-v2.0.json")),
    "hotpotqa": (
        "the file of HotpotQA's questions",
        HOTPOTQA_COMMAND.format(path="hotpot_dev_distractor_v1.json"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Sources:
    """What prompts are made of: words, text to hide needles in, and questions of qa_1 and qa_2.

    Tasks whose source is None cannot be run.
    """

    words: WordList
    essays: Haystack | None = None
    squad: QuestionSet | None = None
    hotpotqa: QuestionSet | None = None


def needed_file(task: str) -> str:
    """The field of `Sources` that a task needs besides words; empty for none."""
    kind = NEEDLE_TASKS.get(task)
    return "essays" if kind and kind.haystack == "essay" else QUESTION_TASKS.get(task, "")


@dataclasses.dataclass(frozen=True)
class Ruler(DrawnQuestions):
    """RULER's 13 tasks, of which its authors take 500 samples. A task whose file is not named is not run.

    Attributes:
        essays: folder of texts to hide needles in, or RULER's `PaulGrahamEssays.json`.
        squad: `dev-v2.0.json` of SQuAD.
        hotpotqa: `hotpot_dev_distractor_v1.json` of HotpotQA.
    """

    title = "RULER"
    note = "Prompt and answer together fill the length. The average is over the 13 tasks."
    tasks = tuple(TASKS)

    essays: str = ""
    squad: str = ""
    hotpotqa: str = ""

    def source(self, task: str) -> str:
        return getattr(self, needed_file(task), "")

    def draw(self, task: str, spec: SampleSpec) -> Iterator[Sample]:
        field = needed_file(task)
        return ruler_samples(task, spec, Sources(load_words(), **({field: self._read(field, spec)} if field else {})))

    @cached_property
    def _read(self) -> Callable[[str, SampleSpec], Any]:
        """Reads a file of `FILES`, once for all tasks."""
        questions = cache(lambda field: {"squad": read_squad, "hotpotqa": read_hotpotqa}[field](path(field)))
        essays = cache(lambda words: read_haystack(path("essays"), words))

        def path(field: str) -> Path:
            return named_path(self, field, *FILES[field])

        # A word has one token at least, so that a length in tokens is words enough.
        return lambda field, spec: essays(spec.length) if field == "essays" else questions(field)

    def score(self, sample: Sample, prediction: str) -> float:
        """Share of the references that are in a prediction of either case; for QA whether any is."""
        text = prediction.lower()
        found = [reference.lower() in text for reference in sample.references]
        return float(any(found)) if sample.task in QUESTION_TASKS else sum(found) / len(found)

    def depth(self, sample: Sample) -> float | None:
        """The place of the only reference in the prompt, as a share of its characters; None for several."""
        if len(sample.references) != 1:
            return None
        place = sample.prompt.find(sample.references[0])
        return None if place < 0 else place / len(sample.prompt)


def ruler_samples(task: str, spec: SampleSpec, sources: Sources) -> Iterator[Sample]:
    """Generates the samples of a task, as long as fit a length.

    A QA task takes the questions in the order of their file, skips those whose documents do not fit, and has no more
    samples than there are others. `details` holds the name of the list, `words`, where words were drawn.
    """
    if task not in TASKS:
        raise InputError(f"`task` is {task!r}: use one of RULER's, {', '.join(TASKS)}")
    field = needed_file(task)
    if field and getattr(sources, field) is None:
        raise InputError(f"{task} of RULER needs {FILES[field][0]}. Get it with\n  {FILES[field][1]}", field=field)
    questions = getattr(sources, QUESTION_TASKS[task]) if task in QUESTION_TASKS else None
    return fitted_samples(
        _drafts(task, sources, spec),
        itertools.count() if questions is None else range(len(questions.questions)),
        spec,
        benchmark="RULER",
        task=task,
        max_new_tokens=TASKS[task],
        skip_too_long=questions is not None,
    )


def _drafts(task: str, sources: Sources, spec: SampleSpec) -> Callable[[int, Random], Draft]:
    """From the number of a sample and a generator to its draft."""

    def count_tokens(text: str) -> int:
        return len(spec.tokenizer.encode(text))

    if task in NEEDLE_TASKS:
        return lambda _, rng: needle_draft(NEEDLE_TASKS[task], rng, sources.words, sources.essays)
    if task == "vt":
        return lambda _, rng: variables_draft(rng, count_tokens)
    if task == "cwe":
        return lambda _, rng: common_words_draft(rng, sources.words, spec.length)
    if task == "fwe":
        return lambda _, rng: frequent_words_draft(rng, spec.length - TASKS[task])
    source = getattr(sources, QUESTION_TASKS[task])
    document_tokens = cache(lambda i: count_tokens(f"Document 10:\n{source.documents[i]}\n\n"))
    return lambda index, rng: question_draft(rng, source, source.questions[index], document_tokens)
