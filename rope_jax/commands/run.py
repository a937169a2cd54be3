"""What a run of `extend` is made of."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from rope_jax.commands.source import Source
from rope_jax.data.mixed import Mix
from rope_jax.data.mixture import RecallRows
from rope_jax.data.pipeline import TrainingBatches, training_batches
from rope_jax.data.source import TextSource
from rope_jax.data.tokenizer import Tokenizer
from rope_jax.evaluation.engine import Evaluation
from rope_jax.model.llama import abstract_params
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods.method import Method
from rope_jax.runs.folder import RunFolder
from rope_jax.sharding import process_rows
from rope_jax.training.config import TrainConfig
from rope_jax.training.learn import LearnConfig


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The texts of a run, as reports name them. `path` may be empty; `split` is evaluated on."""

    name: str
    path: str
    split: str

    def __str__(self) -> str:
        if self.name == "text_folder" and self.path:
            return f"texts of the folder {Path(self.path).resolve().name}"
        return self.name


@dataclasses.dataclass(frozen=True)
class LearnedMethod:
    """How a scale vector is learned before fine-tuning, with frozen weights, from that of `initial`, named `start`."""

    start: str
    initial: Method
    config: LearnConfig
    batch: int
    steps: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is extended, as far as a config says. An export knows as much of the run that it exports.

    `methods` are by name, and the first is exported; `tuning` is the fine-tuning of each.
    """

    source: Source
    geometry: Geometry
    measure: Measure
    methods: Mapping[str, Method | LearnedMethod]
    tuning: Mapping[str, TrainConfig]
    corpus: Corpus

    @property
    def exported(self) -> str:
        return next(iter(self.methods))


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run, after every check that needs no long computation.

    Attributes:
        command: command line that repeats it.
        settings: every field of its config, JSON-able.
        folder: everything is written here.
        pretraining: training of a small model first; None if the model is given.
        streams: streams that documents are distributed to.
        seed: seed of weights and data order.
        profile: first and last step of each training to trace; None for none.
        next_commands: command lines that use what it exports.
    """

    name: str
    command: str
    settings: Mapping[str, Any]
    folder: RunFolder
    recipe: Recipe
    pretraining: TrainConfig | None
    tokenizer: Tokenizer
    documents: TextSource
    streams: int
    seed: int
    evaluation: Evaluation
    mesh: Mesh
    profile: tuple[int, int] | None = None
    next_commands: tuple[str, ...] = ()

    def method_folder(self, method: str) -> RunFolder:
        return self.folder.at(f"methods/{method}")

    def batches(self, rows: int, config: TrainConfig, mix: Mix | None = None) -> TrainingBatches:
        """Training batches of the rows that this process holds, of `rows` in all, for a training."""
        shared = {"rows": process_rows(self.mesh, rows), "streams": self.streams, "skips": config.skips, "mix": mix}
        if config.recall:
            symbols, bos = self.tokenizer.symbols, self.tokenizer.bos_id
            assert symbols and bos is not None, "whoever makes the tokenizer checks that it has symbols"
            shared["recall"] = RecallRows(config.recall, symbols, bos, self.seed)
        return training_batches(self.documents, self.tokenizer, rows, config.length, self.seed, **shared)

    @property
    def parameters(self) -> int:
        return count(abstract_params(self.recipe.source.model))


def count(tree: Any) -> int:
    """Number of elements of a pytree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
