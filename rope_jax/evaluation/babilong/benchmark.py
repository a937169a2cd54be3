"""The benchmark BABILong."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache, partial

from rope_jax.evaluation.babilong.prompts import TASKS
from rope_jax.evaluation.babilong.samples import babilong_samples, babilong_score
from rope_jax.evaluation.babilong.stories import BABI_COMMAND, BOOKS_COMMAND, read_books, read_stories
from rope_jax.evaluation.benchmark import Part, Questions, Setting, check_positive
from rope_jax.evaluation.data_files import named_path
from rope_jax.evaluation.draft import SampleSpec
from rope_jax.evaluation.sample import Sample


@dataclasses.dataclass(frozen=True)
class BabiLong(Questions):
    """BABILong (Kuratov et al., arXiv 2406.10149), tasks 1 to 5.

    Attributes:
        samples: samples per task and length.
        stories: folder of bAbI's stories.
        books: folder of texts to hide them in.
    """

    title = "BABILong"
    note = "Facts scattered in a book, and a question on them."
    tasks = tuple(TASKS)

    samples: int = 100
    stories: str = ""
    books: str = ""

    def __post_init__(self):
        check_positive(self, "samples")

    def parts(self, setting: Setting) -> list[Part]:
        @cache
        def books() -> tuple[str, ...]:
            what = "a folder of books (.txt), such as the test split of PG19"
            return read_books(named_path(self, "books", what, BOOKS_COMMAND.format(folder="FOLDER")))

        def make(task: str, length: int) -> Iterator[Sample]:
            command = BABI_COMMAND.format(folder="FOLDER")
            stories = read_stories(named_path(self, "stories", "the folder of bAbI's stories", command), task)
            spec = SampleSpec(setting.tokenizer, length, self.samples, setting.seed)
            return babilong_samples(task, stories, books(), spec)

        source = ", ".join(filter(None, (self.stories, self.books)))
        return [Part(task, length, partial(make, task, length), source) for task in TASKS for length in setting.lengths]

    def score(self, sample: Sample, prediction: str) -> float:
        return babilong_score(sample, prediction)
