"""The benchmark RULER."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache, partial

from rope_jax.evaluation.benchmark import Part, Questions, Setting, check_positive
from rope_jax.evaluation.data_files import named_path
from rope_jax.evaluation.depths import found_depth
from rope_jax.evaluation.draft import SampleSpec
from rope_jax.evaluation.haystack import read_haystack
from rope_jax.evaluation.ruler.questions import read_hotpotqa, read_squad
from rope_jax.evaluation.ruler.tasks import FILES, TASKS, Sources, needed_file, ruler_samples, ruler_score
from rope_jax.evaluation.ruler.words import load_words
from rope_jax.evaluation.sample import Sample


@dataclasses.dataclass(frozen=True)
class Ruler(Questions):
    """RULER (Hsieh et al., arXiv 2404.06654). A task whose file is not named is not run.

    Attributes:
        samples: samples per task and length; RULER has 500.
        essays: folder of texts to hide needles in, or RULER's `PaulGrahamEssays.json`.
        squad: `dev-v2.0.json` of SQuAD.
        hotpotqa: `hotpot_dev_distractor_v1.json` of HotpotQA.
    """

    title = "RULER"
    note = "Prompt and answer together fill the length. The average is over the 13 tasks."
    tasks = tuple(TASKS)

    samples: int = 100
    essays: str = ""
    squad: str = ""
    hotpotqa: str = ""

    def __post_init__(self):
        check_positive(self, "samples")

    def parts(self, setting: Setting) -> list[Part]:
        words, longest = load_words(), max(setting.lengths)
        readers = {"essays": partial(read_haystack, max_words=longest), "squad": read_squad, "hotpotqa": read_hotpotqa}

        @cache
        def read(field: str):
            return readers[field](named_path(self, field, *FILES[field]))

        def make(task: str, length: int) -> Iterator[Sample]:
            field = needed_file(task)
            sources = Sources(words, **({field: read(field)} if field else {}))
            return ruler_samples(task, SampleSpec(setting.tokenizer, length, self.samples, setting.seed), sources)

        def source(task: str) -> str:
            return getattr(self, needed_file(task), "")

        return [
            Part(task, length, partial(make, task, length), source(task))
            for task in TASKS
            for length in setting.lengths
        ]

    def score(self, sample: Sample, prediction: str) -> float:
        return ruler_score(sample, prediction)

    def depth(self, sample: Sample) -> float | None:
        return found_depth(sample)
