"""What a benchmark is: it asks a model questions and scores the answers, or it measures texts and tasks.

A benchmark is a frozen dataclass that derives from `Questions` or `Measurement`, with its parameters as fields, and a
line in `rope_jax.evaluation.benchmarks`; the engine makes its samples, runs the model, resumes and tabulates.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
from jax.sharding import Mesh

from rope_jax.data.tokenizer import Tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.draft import SampleSpec
from rope_jax.evaluation.nll import make_token_nll
from rope_jax.evaluation.sample import Sample
from rope_jax.evaluation.scores import MeanScore, score_table
from rope_jax.evaluation.texts import Texts
from rope_jax.model.config import LlamaConfig
from rope_jax.model.generate import greedy_batches
from rope_jax.rope.embedding import ScaleVector
from rope_jax.sharding import cache_sharding, row_sharding

Table = dict[str, dict[str, MeanScore]]
Progress = Callable[[Iterable], Iterable]


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """Everything that benchmarks share but the weights and the scale vector.

    Attributes:
        model: config of the model.
        tokenizer: the model's.
        mesh: devices; rows are split over its `data`, `fsdp` and `context` axes.
        original: pre-training context, tokens.
        lengths: tokens of windows and of prompts with their answers.
        open_texts: opens the documents to measure on; InputError if there are none.
        seed: seed of samples and bootstrap.
        batch: rows scored together.
        generate_batch: prompts decoded together.
        chunk: tokens of a row projected to the vocabulary at a time.
        compute: from the config of another model to how it is computed here.
        progress: from a description to a wrapper of an iterable, for instance a `tqdm`.
    """

    model: LlamaConfig
    tokenizer: Tokenizer
    mesh: Mesh
    original: int
    lengths: tuple[int, ...]
    open_texts: Callable[[], Texts]
    _: dataclasses.KW_ONLY
    seed: int = 0
    batch: int = 8
    generate_batch: int = 8
    chunk: int = 512
    compute: Callable[[LlamaConfig], LlamaConfig] = lambda model: model
    progress: Callable[[str], Progress] = lambda description: iter

    def __post_init__(self):
        if min(self.lengths) < 2:
            raise InputError(f"`lengths` is {self.lengths}: use numbers of tokens of at least 2")
        for field in ("batch", "generate_batch", "chunk"):
            check_positive(self, field)

    def spec(self, length: int, count: int) -> SampleSpec:
        """So many samples of a length."""
        return SampleSpec(self.tokenizer, length, count, self.seed)

    @cached_property
    def texts(self) -> Texts:
        """The documents to measure on."""
        return self.open_texts()

    @cached_property
    def token_nll(self) -> Callable[..., np.ndarray]:
        """NLL of tokens in nats, compiled once for all parameters and scale vectors."""
        return make_token_nll(self.model, self.chunk, row_sharding(self.mesh))


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A model under one scale vector.

    Attributes:
        setting: what it is measured in.
        params: parameters of the model.
        rope: scale vector.
        name: name of the scale vector; results are kept under it.
        weights: digest of the parameters.
    """

    setting: Setting
    params: Any
    rope: ScaleVector
    name: str = ""
    weights: str = ""

    @property
    def score(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """From tokens and wanted columns to NLLs, nats."""
        return partial(self.setting.token_nll, self.params, self.rope)

    @property
    def generate(self) -> Callable:
        """Batches of greedy answers to prompts."""
        sharding = cache_sharding(self.setting.mesh)
        return partial(greedy_batches, self.params, self.setting.model, self.rope, cache_sharding=sharding)


@dataclasses.dataclass(frozen=True)
class Part:
    """Samples of one task at one length, not made yet.

    Attributes:
        task: name of the task.
        length: tokens; 0 for a task that has no length of its own.
        make: makes the samples; InputError if that is impossible.
        source: files that the samples are made from; empty if they are generated.
    """

    task: str
    length: int
    make: Callable[[], Iterable[Sample]]
    source: str = ""


class Questions(abc.ABC):
    """A benchmark that asks questions and scores the answers.

    Attributes:
        title: its name in reports.
        note: what a reader of its table must know.
        tasks: its tasks; an average needs all of them.
    """

    title: ClassVar[str]
    note: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]

    @property
    def bins(self) -> int:
        """Strata of depth in its grids."""
        return 10

    @abc.abstractmethod
    def parts(self, setting: Setting) -> list[Part]:
        """What it asks in a setting."""

    @abc.abstractmethod
    def score(self, sample: Sample, prediction: str) -> float:
        """Score in [0, 1] of a prediction."""

    def depth(self, sample: Sample) -> float | None:
        """Depth of the answer in the prompt: 0 at the beginning, 1 at the end; None without one."""
        return sample.details.get("depth")

    def column(self, sample: Sample) -> str:
        """The column of its table that a sample belongs to."""
        return str(sample.length)

    def table(self, samples: Sequence[Sample], scores: Mapping[str, float], seed: int) -> Table:
        """Mean scores by task and column; `scores` are by sample id."""
        return score_table(samples, scores, self.tasks, seed)

    def own_files(self, samples: Sequence[Sample], predictions: Mapping[str, str]) -> dict[str, list[dict]]:
        """Predictions in the benchmark's own form: name of a file to its rows."""
        return {}


@dataclasses.dataclass(frozen=True)
class DrawnQuestions(Questions):
    """Questions that are drawn anew for every task and length, `samples` of each."""

    samples: int = 100

    def __post_init__(self):
        check_positive(self, "samples")

    @abc.abstractmethod
    def draw(self, task: str, spec: SampleSpec) -> Iterator[Sample]:
        """Samples of a task; InputError if its files are missing or nothing fits the length."""

    def source(self, task: str) -> str:
        """Files that a task's samples are made from."""
        return ""

    def parts(self, setting: Setting) -> list[Part]:
        specs = [setting.spec(length, self.samples) for length in setting.lengths]
        return [
            Part(task, spec.length, partial(self.draw, task, spec), self.source(task))
            for task in self.tasks
            for spec in specs
        ]


class Measurement(abc.ABC):
    """A benchmark that measures texts or tasks, in stages that are kept one by one.

    Attributes:
        title: as of `Questions`, if its results have the same form; empty if they have a form of their own.
        note: as of `Questions`.
    """

    title: ClassVar[str] = ""
    note: ClassVar[str] = ""

    def check(self, setting: Setting) -> dict[str, InputError]:
        """Tasks that cannot be measured, and why, found before weights are read; InputError if nothing can be."""
        return {}

    def of(self, setting: Setting) -> dict[str, str]:
        """Digests of what it measures on and how, by name; stages of something else are measured anew."""
        return {}

    def shared(self, setting: Setting) -> dict[str, Callable[[], dict]]:
        """Stages that do not depend on the model, measured before its weights are read."""
        return {}

    @abc.abstractmethod
    def stages(self, subject: Subject, shared: Mapping[str, dict]) -> dict[str, Callable[[], dict]]:
        """Name of a stage to what measures its JSON-able record; `shared` holds the records of `shared`."""

    def result(self, records: Mapping[str, dict]) -> dict:
        """What results hold, made from the records of all stages."""
        return dict(records)

    def compare(self, records: Mapping[str, dict], reference: Mapping[str, dict], setting: Setting) -> dict:
        """Paired differences of a method's results from those of the reference, JSON-able."""
        return {}


Benchmark = Questions | Measurement


def check_positive(value: Any, *fields: str) -> None:
    """Raises an InputError for the first of these attributes that is below 1."""
    for field in fields:
        if getattr(value, field) < 1:
            raise InputError(f"`{field}` is {getattr(value, field)}: it must be at least 1")
