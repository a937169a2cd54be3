"""From a config to the values that the library takes. This room alone knows config fields."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rope_jax.cli.methods import define_methods, solved_method
from rope_jax.cli.names import reading, section, value
from rope_jax.commands.fields import FIELDS, LEARNED, OWN, check_fields
from rope_jax.commands.plan import PLANNED
from rope_jax.commands.run import Corpus, LearnedMethod, Recipe
from rope_jax.commands.source import Compute, Source
from rope_jax.data.corpus import open_corpus
from rope_jax.data.mixed import Mix
from rope_jax.data.positions import Skips
from rope_jax.data.source import Splits
from rope_jax.data.tokenizer import Tokenizer, load_tokenizer
from rope_jax.errors import InputError
from rope_jax.files import read_json_object
from rope_jax.interop.hf_config import SourceConfig
from rope_jax.interop.hub import resolve_model
from rope_jax.interop.huggingface import check_model
from rope_jax.interop.model_folder import read_source
from rope_jax.model.config import LlamaConfig
from rope_jax.model.lora import LoraConfig
from rope_jax.multihost import Processes
from rope_jax.rope.embedding import identity
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods.adjusted import check_adjustment, check_parameters, parse_adjusted
from rope_jax.rope.methods.method import Method
from rope_jax.rope.methods.registered import named
from rope_jax.training.config import OptimizerConfig, TrainConfig
from rope_jax.training.learn import LearnConfig


def check(config: ConfigDict, *known: str) -> None:
    """Checks every field on its own; `known` are choices that the command knows and others do not.

    Defines the methods of the file in `methods` first, whose names are choices, too.
    """
    if config.methods and isinstance(config.methods, str):  # another type is refused below
        define_methods(os.path.abspath(config.methods))
    check_fields({field.name: value(config, field.name) for field in FIELDS}, known)


def settings(config: ConfigDict) -> dict[str, Any]:
    return json.loads(config.to_json())


def processes(config: ConfigDict) -> Processes:
    d = config.distributed
    return Processes(d.coordinator, d.processes, d.process, d.auto, tuple(d.local_devices), d.timeout)


def compute(config: ConfigDict) -> Compute:
    known = {field.name for field in dataclasses.fields(LlamaConfig)}
    choices = {name: chosen for name, chosen in config.model.items() if name in known}
    return Compute(choices, ring=config.mesh.context > 1)


def source(config: ConfigDict, folder: Path, finished: bool = False) -> Source:
    """The model: the given one, or the small one that a run in `folder` pre-trains, or has if it is `finished`."""
    path, record = config.model.path, folder / "source.json"
    begun = read_json_object(record) if record.exists() else {}
    with reading("model.path"):
        # A branch may have moved since the run began.
        place = resolve_model(path, begun.get("commit", config.model.revision)) if path else folder / "model"
        known = check_model(place) if path or finished else None
    known = known or _small_model(config)
    check_geometry(config, known)
    return Source(path, place, known, compute(config).of(known.config))


def check_geometry(config: ConfigDict, known: SourceConfig) -> None:
    """Checks that a geometry that the config names, too, is the model's."""
    for field, found in (("rope.base", known.config.rope_base), ("rope.head_dim", known.config.head_dim)):
        given = value(config, field)
        if given and given != found:
            raise InputError(f"`{field}` is {given:g}, but the model's is {found:g}: set it to 0")


def plan_source(config: ConfigDict) -> Source:
    """The model to plan for, as a GPU computes it; no weights are read."""
    path = config.plan.model or config.model.path
    with reading("plan.model" if config.plan.model else "model.path"):
        place = Path(path) if config.plan.model else resolve_model(path, config.model.revision) if path else Path()
        known = read_source(place) if path else None
    known = known or _small_model(config)
    return Source(path, place, known, compute(config).of(known.config, PLANNED))


def _small_model(config: ConfigDict) -> SourceConfig:
    p = config.pretrain
    for field in ("pretrain.steps", "rope.base", "rope.head_dim", "context.original"):
        given = value(config, field)
        if given <= 0:
            raise InputError(
                f"`{field}` is {given} and `model.path` is empty: name a Hugging Face folder in `model.path`, or set "
                f"`{field}` to pre-train a model first"
            )
    with reading("pretrain.tokenizer"):
        tokenizer = load_tokenizer(p.tokenizer, recall=bool(p.recall))
    if p.recall and not tokenizer.symbols:
        raise InputError(
            f"`pretrain.tokenizer` is {p.tokenizer!r}, which has no tokens of synthetic recall, and `pretrain.recall` "
            f"is {p.recall:g}: use 'bytes', or the tokenizer of a study"
        )
    with section("pretrain"):
        model = LlamaConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=p.hidden_size,
            intermediate_size=p.intermediate_size,
            num_layers=p.num_layers,
            num_heads=p.num_heads,
            num_kv_heads=p.num_kv_heads,
            head_dim=config.rope.head_dim,
            rope_base=config.rope.base,
            tie_embeddings=True,
            architecture=p.architecture,
            attention_bias=p.architecture == "qwen2",
            context=config.context.original,
        )
    return SourceConfig(model, identity(model.head_dim), provenance=None, carried={})


def geometry(known: SourceConfig) -> Geometry:
    model = known.config
    return Geometry(model.rope_base, model.head_dim, known.rope, model.num_layers)


def measure(config: ConfigDict, original: int) -> Measure:
    """Contexts and disturbance; `original` is the model's context, which a field may replace."""
    original = config.context.original or original
    target = config.context.target or 2 * original
    return Measure(original, target, intervals=config.angles.intervals, arithmetic=config.angles.arithmetic)


def method_names(config: ConfigDict, refused: Mapping[str, str]) -> tuple[str, ...]:
    """The methods of a config, the exported one first; `refused` are names with the reason why."""
    for field, names in (("rope.method", (config.rope.method,)), ("compare", config.compare)):
        for name in names:
            said = parse_adjusted(name)
            method = said.method
            if method in refused:
                raise InputError(f"`{field}` names '{method}': {refused[method]}")
            if method != name and method in (LEARNED, OWN):
                raise InputError(f"`{field}` is {name!r}: '{method}' has the factors that it has")
            try:
                if said.attention_factor:
                    check_adjustment(said.attention_factor)
                if said.parameters:
                    check_parameters(named(method), said)
            except InputError as error:
                reason = str(error).replace("`", "")
                raise InputError(f"`{field}` is {name!r}: {reason}") from error
    return tuple(dict.fromkeys((config.rope.method, *config.compare)))


# What `extend` and `export` cannot do.
NO_OWN = {OWN: "it leaves the model as it is; use a method that extends"}


def method(config: ConfigDict, name: str) -> Method | LearnedMethod:
    if name != LEARNED:
        return solved_method(config, name)
    fields = config.learn
    return LearnedMethod(
        fields.start, solved_method(config, fields.start), learning(config), fields.batch, fields.steps
    )


def check_methods(methods: Mapping[str, Method | LearnedMethod], geometry: Geometry, measure: Measure) -> None:
    """Checks that every method can extend a model, without solving."""
    for each in methods.values():
        (each.initial if isinstance(each, LearnedMethod) else each).check(geometry, measure)


def learning(config: ConfigDict) -> LearnConfig:
    with section("learn"):
        return LearnConfig(config.learn.learning_rate, config.learn.attention_factor, config.train.loss_chunk)


def pretraining(config: ConfigDict) -> TrainConfig:
    p = config.pretrain
    shared = {name: p[name] for name in ("learning_rate", "warmup_steps", "steps", "weight_decay", "clip_norm")}
    with section("pretrain", length="config.context.original"):
        return TrainConfig(
            optimizer=OptimizerConfig(schedule="cosine", b2=0.95, **shared),
            length=config.context.original,
            global_batch=p.global_batch,
            loss_chunk=config.train.loss_chunk,
            checkpoint_every=p.checkpoint_every,
            recall=p.recall,
            check_finite=config.debug.nans,
        )


def tuning(config: ConfigDict, contexts: Measure, name: str = "") -> TrainConfig:
    """The fine-tuning of a method at the extended context; a learned vector may be trained with the weights."""
    t, lora = config.train, config.train.lora
    optimizer = {field.name: t[field.name] for field in dataclasses.fields(OptimizerConfig) if field.name in t}
    shared = ("global_batch", "accumulation", "loss_chunk", "checkpoint_every", "keep", "keep_best")
    with train_section(config):
        return TrainConfig(
            optimizer=OptimizerConfig(**optimizer),
            length=t.length or contexts.target,
            skips=Skips(contexts.target, t.chunks) if t.positions == "skip" else None,
            mix=Mix(t.mix, contexts.original) if t.mix else None,
            **{field: t[field] for field in (*shared, "offload_optimizer")},
            lora=LoraConfig(lora.rank, lora.alpha, tuple(lora.targets), config.seed) if lora.rank else None,
            learn=learning(config) if name == LEARNED and config.learn.joint else None,
            check_finite=config.debug.nans,
        )


def train_section(config: ConfigDict) -> contextlib.AbstractContextManager[None]:
    """Renames arguments in the errors of a block to the fields of 'train'."""
    own = config.train.length or config.train.positions == "skip"
    return section("train", length="config.train.length" if own else "config.context.target")


def recipe(config: ConfigDict, source: Source, refused: Mapping[str, str] = NO_OWN) -> Recipe:
    """How a model is extended, checked as far as the model's shape allows."""
    shape, contexts = geometry(source.known), measure(config, source.known.config.context)
    named = {name: method(config, name) for name in method_names(config, refused)}
    check_methods(named, shape, contexts)
    tunings = {name: tuning(config, contexts, name) for name in named}
    corpus = Corpus(config.data.name, config.data.path, config.eval.split)
    return Recipe(source, shape, contexts, named, tunings, corpus)


def tokenizer(config: ConfigDict, source: Source) -> Tokenizer:
    name, recall = ("data.tokenizer", False) if source.path else ("pretrain.tokenizer", bool(config.pretrain.recall))
    with reading(name, tokenizer=f"config.{name}"):
        return source.load_tokenizer(value(config, name), recall)


def corpus(config: ConfigDict, folder: Path) -> Splits:
    """The splits of the texts; what they prepare goes to the run's folder."""
    name, path = config.data.name, config.data.path
    if name != "python_stdlib" and not path:
        raise InputError("`data.path` is empty: name the folder of texts to train and evaluate on")
    with reading("data.path", name="config.data.name"):
        return open_corpus(name, path, folder / "data")
