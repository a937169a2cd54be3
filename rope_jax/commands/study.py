"""The command `study`: pre-train small models, and measure what each scale vector does to them.

RUN/tokenizer/, RUN/tokens.npz         a tokenizer of the training texts, and all texts as its tokens
RUN/vectors/L-S/NAME.json              a scale vector, and what is known of it without running a model
RUN/models/SHAPE-L-SEED/               a model, with records of its training and of its energies, and below it
  S/zero_shot|tuned|skipped/NAME.json    a measurement under a vector
RUN/table.jsonl, RUN/report.html       all records, a line each; the page made from them, also as report.md
"""

import contextlib
import dataclasses
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from rope_jax.commands.reporter import Reporter
from rope_jax.commands.source import read_params
from rope_jax.data.mixture import Mixture, MixtureBatches
from rope_jax.data.recall import Symbols
from rope_jax.data.source import Splits
from rope_jax.data.subword import train_subword
from rope_jax.data.tokenizer import Tokenizer, load_tokenizer
from rope_jax.errors import InputError
from rope_jax.files import read_json_lines, write_text
from rope_jax.interop.huggingface import write_model
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import abstract_params, init_params
from rope_jax.model.usage import measure_usage
from rope_jax.report.metrics import MetricsWriter, read_metrics
from rope_jax.report.write import write_page
from rope_jax.rope.embedding import ScaleVector, identity
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.runs.folder import RunFolder
from rope_jax.runs.software import versions
from rope_jax.study.design import LEARNED, SKIPPED, TUNED, ZERO_SHOT, Design, Setup
from rope_jax.study.page import study_page
from rope_jax.study.probes import Probes, ProbeSizes, make_probes, measure
from rope_jax.study.table import table_lines
from rope_jax.study.tuning import fine_tune
from rope_jax.study.vectors import check_vector, per_pair_costs, random_vectors, solved
from rope_jax.training.config import OptimizerConfig, TrainConfig
from rope_jax.training.learn import LearnConfig, learn
from rope_jax.training.loop import Callbacks, Start, train
from rope_jax.training.state import Variables
from rope_jax.training.update import Training

# Seeds of batches of fine-tuning begin here, so that no row of pre-training comes again in the same place.
TUNING_SEED = 1_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """A study, after every check that needs no long computation.

    Attributes:
        command: command line that repeats it.
        settings: every field of its config, JSON-able.
        folder: everything is written here.
        texts: splits of the corpus; 'train' is trained on, and models are measured on all others.
        vocab_size: ids of the tokenizer, those of `symbols` among them.
        symbols: of synthetic recall, numbered from 0; the tokenizer has them last.
        recall_share: share of rows that are synthetic recall.
        model: the shape that all models share, apart from layers, widths and context.
        measure: how angles are counted; its contexts are those of the models.
        pretraining: optimizer of pre-training, apart from its steps.
        tuning: optimizer of fine-tuning, apart from its steps.
        batch_tokens: tokens of an update of pre-training, and of one of fine-tuning.
        learning: how vectors are learned, from the method `start` in so many steps.
        probes: numbers of rows that are measured.
    """

    name: str
    command: str
    settings: Mapping[str, Any]
    folder: RunFolder
    design: Design
    texts: Splits
    vocab_size: int
    symbols: Symbols
    recall_share: float
    model: LlamaConfig
    intervals: int
    pretraining: OptimizerConfig
    tuning: OptimizerConfig
    batch_tokens: tuple[int, int]
    learning: tuple[LearnConfig, str, int]
    probes: ProbeSizes
    mesh: Mesh

    def check(self) -> None:
        """Checks that every vector can be solved for every context, without solving, and that every training fits.

        Raises:
            InputError: naming what cannot be used.
        """
        for setup in self.design.setups():
            self.training(setup, setup.context, tuned=False).check()
            for extension in self.design.extensions:
                for length in (setup.context, setup.context * extension):
                    self.training(setup, length, tuned=True).check()
                for name in self.design.vectors:
                    check_vector(name, self.geometry(), self.contexts(setup.context, extension))

    def config(self, setup: Setup) -> LlamaConfig:
        """The model of a setup; its weights start with a standard deviation of `width^-1/2`, which suits any width."""
        layers, width = setup.shape.layers, setup.shape.width
        heads, rest = divmod(width, self.model.head_dim)
        if rest:
            raise InputError(
                f"`models` has a width of {width}, which is no multiple of the head dimension, {self.model.head_dim}",
                field="models",
            )
        return dataclasses.replace(
            self.model,
            hidden_size=width,
            intermediate_size=-(-8 * width // 3 // 64) * 64,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=heads,
            context=setup.context,
            initializer_range=width**-0.5,
        )

    def geometry(self) -> Geometry:
        return Geometry(self.model.rope_base, self.model.head_dim, identity(self.model.head_dim))

    def contexts(self, context: int, extension: int) -> Measure:
        return Measure(context, context * extension, intervals=self.intervals)

    def training(self, setup: Setup, length: int, tuned: bool) -> Training:
        """Pre-training of a model, or its fine-tuning, in rows of `length` tokens."""
        tokens = setup.tokens * (self.design.tune_share if tuned else 1)
        rows = max(self.batch_tokens[tuned] // length, 1)
        steps = max(round(tokens / (rows * length)), 1)
        base = self.tuning if tuned else self.pretraining
        optimizer = dataclasses.replace(base, steps=steps, warmup_steps=min(base.warmup_steps, steps))
        every = max(steps // 8, 1)
        return Training(
            self.config(setup), TrainConfig(optimizer, length, rows, checkpoint_every=every, keep=1), self.mesh
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """What all models of a study are trained and measured on."""

    tokenizer: Tokenizer
    mixture: Mixture
    documents: tuple[np.ndarray, ...]

    def probes(self, context: int, extension: int, sizes: ProbeSizes) -> Probes:
        bos = self.mixture.bos_id
        return make_probes(self.documents, (context, context * extension), self.mixture.symbols, bos, sizes)


def run(study: Study, reporter: Reporter) -> list[dict]:
    """Makes every record of a study that is missing; gives the lines of its table.

    Interrupted anywhere, the same call resumes from the last record, or checkpoint of a pre-training.

    Raises:
        NonFiniteLoss: naming the step of a pre-training.
    """
    material = prepare_material(study, reporter)
    for setup in study.design.setups():
        pretrain(study, setup, material, reporter)
        measure_energy(study, setup, material, reporter)
        for extension in study.design.extensions:
            vectors(study, setup.context, extension, reporter)
            extend(study, setup, extension, material, reporter)
            write_results(study)
    return write_results(study)


def prepare_material(study: Study, reporter: Reporter) -> Material:
    """The tokenizer, trained once, and the texts as its tokens."""
    place, tokens = study.folder / "tokenizer", study.folder / "tokens.npz"
    if not tokens.exists():
        reporter.say("training a tokenizer")
        train = [document["text"] for document in study.texts["train"]]
        train_subword(place, train, study.vocab_size, study.symbols)
        tokenizer = load_tokenizer(place)
        held_out = [d["text"] for split, source in study.texts.items() if split != "train" for d in source]
        text = np.concatenate([tokenizer.encode(document) for document in train])
        temporary = tokens.with_name("tokens.tmp.npz")
        np.savez(temporary, text, *(tokenizer.encode(document) for document in held_out))
        temporary.replace(tokens)
    tokenizer = load_tokenizer(place)
    symbols = dataclasses.replace(study.symbols, first=tokenizer.vocab_size - study.symbols.count)
    assert tokenizer.bos_id is not None
    with np.load(tokens) as arrays:
        text, *documents = (arrays[name] for name in arrays.files)
    mixture = Mixture(text, symbols, study.recall_share, tokenizer.bos_id)
    return Material(tokenizer, mixture, tuple(documents))


def pretrain(study: Study, setup: Setup, material: Material, reporter: Reporter) -> None:
    """Trains a small model from random weights and writes it as a Hugging Face folder."""
    place = study.folder.at(setup.folder)
    if place.has("pretraining.json"):
        return
    training = study.training(setup, setup.context, tuned=False)
    config, batches = training.config, _batches(material, training, setup.seed)
    rope = identity(training.model.head_dim)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(training.model)))
    reporter.say(f"{setup.folder}: pre-training {parameters:,} parameters for {config.optimizer.steps} steps")

    start = Start(rope, lambda: _random_params(training.model, setup.seed))
    with reporter.deferred_stop() as should_stop:
        callbacks = Callbacks(partial(_report, training, place, reporter), should_stop)
        trained = train(training, start, batches, place / "checkpoints", callbacks)
    with reporter.byte_bar("writing the model") as progress:
        write_model(
            place / "model",
            training.model,
            trained.params,
            rope,
            context=setup.context,
            provenance={"trained_by": "rope-jax", "steps": config.optimizer.steps},
            extra_files=material.tokenizer.save,
            dtype="float32",
            progress=progress,
        )
    curve = read_metrics(place / "metrics.jsonl")
    losses = [float(f"{row['loss']:.5g}") for row in curve]
    place.record(
        "pretraining",
        lambda: {
            "parameters": parameters,
            "without_embeddings": parameters - study.vocab_size * setup.shape.width,
            "steps": config.optimizer.steps,
            "tokens": config.optimizer.steps * config.global_batch * config.length,
            "losses": losses,
            "seconds": round(sum(row["seconds"] for row in curve), 1),
        },
    )
    shutil.rmtree(place / "checkpoints")


def measure_energy(study: Study, setup: Setup, material: Material, reporter: Reporter) -> None:
    """Records how much a model uses each frequency pair on texts of its own context; the mean over pairs is 1."""
    place = study.folder.at(setup.folder)
    if place.has("usage.json"):
        return
    config, head = study.config(setup), np.array([material.mixture.bos_id], np.int32)
    held_out = [document for document in material.documents if len(document) >= setup.context]
    texts = [np.concatenate([head, document[: setup.context - 1]]) for document in held_out]
    params = read_params(place / "model", config, study.mesh, reporter)
    with jax.set_mesh(study.mesh):
        usage = measure_usage(params, config, identity(config.head_dim), texts, {})
    place.record("usage", lambda: {"energy": usage.pair_weights(), "texts": len(texts)})


def _random_params(model: LlamaConfig, seed: int) -> dict:
    return jax.jit(lambda: nn.unbox(init_params(model, jax.random.key(seed))))()


@contextlib.contextmanager
def _report(
    training: Training, place: RunFolder, reporter: Reporter, resumed: int
) -> Iterator[Callable[[int, dict], None]]:
    config = training.config
    sizes = {"steps": config.optimizer.steps, "tokens_per_step": config.global_batch * config.length}
    with (
        MetricsWriter(place.path, resumed) as metrics,
        reporter.training_bar(place.path.name, start=resumed, **sizes) as show,
    ):
        last = time.monotonic()

        def on_step(step: int, values: dict) -> None:
            nonlocal last
            now = time.monotonic()
            metrics.write(step, {**values, "seconds": now - last})
            last = now
            show(step, values)

        yield on_step


def vectors(study: Study, context: int, extension: int, reporter: Reporter) -> None:
    """Records the vectors that need no model, each with its costs for each pair."""
    design, geometry, measure = study.design, study.geometry(), study.contexts(context, extension)
    place = study.folder.at(f"vectors/{context}-{extension}")
    drawn = random_vectors(design.random, geometry.head_dim // 2, extension)

    for name in reporter.bar(f"vectors from {context} to {measure.target}")((*design.vectors, *drawn)):
        if name in drawn:
            scale = partial(ScaleVector.create, drawn[name])
        else:
            scale = partial(solved, name, geometry, measure, design.share(extension))
        place.record(name, lambda scale=scale: vector_record(geometry, measure, scale()))


def extend(study: Study, setup: Setup, extension: int, material: Material, reporter: Reporter) -> None:
    """Measures a model under every vector: as it is, fine-tuned, and fine-tuned with positions that skip."""
    design, place = study.design, study.folder.at(f"{setup.folder}/{extension}")
    solved = study.folder.at(f"vectors/{setup.context}-{extension}")
    drawn = random_vectors(design.random, study.model.head_dim // 2, extension)
    learned = (LEARNED,) if LEARNED in design.methods else ()
    waiting = [(ZERO_SHOT, name) for name in (*design.vectors, *learned, *drawn)]
    waiting += [(stage, name) for stage in (TUNED, SKIPPED) for name in design.methods]
    waiting = [(stage, name) for stage, name in waiting if not place.has(f"{stage}/{name}.json")]
    if not waiting:
        return
    folder = study.folder.at(setup.folder) / "model"
    base = read_params(folder, study.config(setup), study.mesh, reporter)
    probes = material.probes(setup.context, extension, study.probes)

    def scale(name: str) -> ScaleVector:
        if name == LEARNED:
            found = place.record(name, lambda: learn_vector(study, setup, extension, material, base))
        else:
            found = solved.recorded(name)
        assert found is not None
        return ScaleVector.create(found["factors"], found["attention_factor"])

    def record(stage: str, name: str) -> dict:
        began, rope = time.monotonic(), scale(name)
        params, tuning = base, {}
        if stage != ZERO_SHOT:
            length = setup.context * (extension if stage == TUNED else 1)
            training = study.training(setup, length, tuned=True)
            skip_to = setup.context * extension if stage == SKIPPED else None
            batches = _batches(material, training, TUNING_SEED + setup.seed, skip_to)
            params, losses = fine_tune(training, base, rope, batches)
            steps, rows = training.config.optimizer.steps, training.config.global_batch
            tuning = {"tokens": steps * rows * length, "losses": [float(f"{loss:.5g}") for loss in losses]}
        measured = measure(params, study.config(setup), rope, probes)
        return {**tuning, **measured, "seconds": round(time.monotonic() - began, 2)}

    what = f"{setup.folder}, {setup.context} to {probes.target}"
    for stage, name in reporter.bar(what)(waiting):
        place.record(f"{stage}/{name}", partial(record, stage, name))


def learn_vector(study: Study, setup: Setup, extension: int, material: Material, base: dict) -> dict:
    """A vector by gradient descent through the frozen model, with its costs for each pair."""
    config, start, steps = study.learning
    geometry, measure = study.geometry(), study.contexts(setup.context, extension)
    training = study.training(setup, measure.target, tuned=True)
    batches = _batches(material, training, TUNING_SEED // 2 + setup.seed)
    began = time.monotonic()
    initial = Variables(base, solved(start, geometry, measure, study.design.share(extension)))
    with jax.set_mesh(study.mesh):
        scale, losses, _ = learn(initial, training.model, itertools.islice(batches, steps), config, study.mesh)
    tokens = steps * training.config.global_batch * measure.target
    seconds = round(time.monotonic() - began, 2)
    return {**vector_record(geometry, measure, scale), "tokens": tokens, "losses": losses.tolist(), "seconds": seconds}


def vector_record(geometry: Geometry, measure: Measure, scale: ScaleVector) -> dict:
    """The content of a vector's record."""
    return {
        "factors": np.asarray(scale.factors, float).tolist(),
        "attention_factor": np.asarray(scale.attention_factor, float).tolist(),
        "costs": per_pair_costs(geometry, measure, scale),
    }


def _batches(material: Material, training: Training, seed: int, skip_to: int | None = None) -> MixtureBatches:
    config = training.config
    return MixtureBatches(material.mixture, (config.global_batch, config.length), seed, skip_to)


def write_results(study: Study) -> list[dict]:
    """Writes all records as `table.jsonl`, a line each, and the page that they make; gives the lines."""
    about = {"kind": "study", "name": study.name, "command": study.command, "versions": versions()}
    lines = [{**about, "config": study.settings}, *table_lines(study.folder, study.design)]
    write_text(study.folder / "table.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_page(study.folder.path, study_page(lines))
    return lines


def rewrite_page(table: Path, folder: Path) -> None:
    """Writes the page of a table into a folder."""
    write_page(folder, study_page([line for _, line in read_json_lines(table)]))
