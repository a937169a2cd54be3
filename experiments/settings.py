"""From a config's fields to the frozen dataclasses that the library takes, checked on the way."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from rope_jax.data.tokenizer import Tokenizer
from rope_jax.errors import InputError
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector
from rope_jax.rope.methods import Extension
from rope_jax.training.loop import TrainConfig
from rope_jax.training.state import OptimizerConfig


def methods(config: ConfigDict) -> tuple[str, ...]:
    """Methods of a run, the one that is exported first."""
    return tuple(dict.fromkeys((config.rope.method, *config.compare)))


def pretrained_model(config: ConfigDict, tokenizer: Tokenizer) -> LlamaConfig:
    """Shape of the small model that is trained from nothing.

    Args:
        config: the run's config; `rope.base`, `rope.head_dim` and `context.original` must be set.
        tokenizer: its vocabulary is the model's.

    Returns:
        The shape, in float32.

    Raises:
        InputError: if a field is missing or does not fit.
    """
    for field, value in (
        ("pretrain.steps", config.pretrain.steps),
        ("rope.base", config.rope.base),
        ("rope.head_dim", config.rope.head_dim),
        ("context.original", config.context.original),
    ):
        if value <= 0:
            raise InputError(
                f"config.{field} is {value} and config.model.path is empty: name a Hugging Face folder in "
                f"config.model.path, or set config.{field} to pre-train a model first"
            )
    p = config.pretrain
    return computed(
        config,
        LlamaConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=p.hidden_size,
            intermediate_size=p.intermediate_size,
            num_layers=p.num_layers,
            num_heads=p.num_heads,
            num_kv_heads=p.num_kv_heads,
            head_dim=config.rope.head_dim,
            rope_base=config.rope.base,
            tie_embeddings=True,
            context=config.context.original,
        ),
    )


def computed(config: ConfigDict, model: LlamaConfig) -> LlamaConfig:
    """A model's shape with the run's way of computing it."""
    m = config.model
    cpu = jax.default_backend() == "cpu"
    dtype = ("float32" if cpu else "bfloat16") if m.dtype == "auto" else m.dtype
    return dataclasses.replace(
        model,
        dtype=dtype,
        param_dtype=m.param_dtype,
        remat=m.remat,
        scan_unroll=m.scan_unroll,
        attention_chunk=m.attention_chunk or (128 if cpu else 512),
    )


def model_extension(config: ConfigDict, model: LlamaConfig, own: ScaleVector) -> Extension:
    """What is extended, from the run's fields and the model's own config.

    Args:
        config: the run's config.
        model: shape of the model.
        own: the scaling its config already carries.

    Returns:
        The extension, checked for every method of the run.

    Raises:
        InputError: naming the field that is wrong or disagrees with the model.
    """
    for field, wanted, found in (
        ("rope.base", config.rope.base, model.rope_base),
        ("rope.head_dim", config.rope.head_dim, model.head_dim),
    ):
        if wanted and wanted != found:
            raise InputError(
                f"config.{field} is {wanted:g}, but the model's is {found:g}: set it to 0 to take the model's"
            )
    original = config.context.original or model.context
    return extension(config, model.rope_base, model.head_dim, original, own, model.num_layers)


def extension(
    config: ConfigDict, base: float, head_dim: int, original: int, own: ScaleVector, layers: int | None
) -> Extension:
    """What is extended, from the run's fields and a geometry.

    Args:
        config: the run's config.
        base: rotary base.
        head_dim: head dimension D.
        original: pre-training context, tokens.
        own: scaling that the model's config already carries.
        layers: layers of the model; None allows no factors per layer.

    Returns:
        The extension, checked for every method of the run.

    Raises:
        InputError: naming the field that is wrong.
    """
    if original < 0 or config.context.target < 0:
        raise InputError("config.context.original and .target are token counts: neither may be negative")
    result = Extension(
        base=base,
        head_dim=head_dim,
        own=own,
        original=original,
        target=config.context.target or 2 * original,
        intervals=config.angles.intervals,
        n_hat=config.solve.n_hat,
        threshold=config.solve.threshold,
        layers=layers,
        factors=_factors(config.rope.factors),
    )
    result.check(methods(config))
    return result


def pretraining(config: ConfigDict) -> TrainConfig:
    """The run that trains the small model."""
    p = config.pretrain
    optimizer = _optimizer(
        "pretrain",
        learning_rate=p.learning_rate,
        schedule="cosine",
        warmup_steps=p.warmup_steps,
        steps=p.steps,
        b2=0.95,
        weight_decay=p.weight_decay,
        clip_norm=p.clip_norm,
    )
    return TrainConfig(
        optimizer=optimizer,
        length=config.context.original,
        global_batch=p.global_batch,
        loss_chunk=config.train.loss_chunk,
        checkpoint_every=p.checkpoint_every,
    )


def fine_tuning(config: ConfigDict, target: int) -> TrainConfig:
    """The run that fine-tunes at the extended context.

    Args:
        config: the run's config.
        target: extended context, tokens per sequence.

    Returns:
        The run.

    Raises:
        InputError: naming the field that is wrong.
    """
    t = config.train
    for field in ("steps", "global_batch", "accumulation", "loss_chunk", "checkpoint_every", "keep"):
        if t[field] < 1:
            raise InputError(f"config.train.{field} is {t[field]}: it must be at least 1")
    if t.global_batch % t.accumulation:
        raise InputError(
            f"config.train.global_batch is {t.global_batch}, which config.train.accumulation = "
            f"{t.accumulation} does not divide: choose a divisor"
        )
    optimizer = _optimizer(
        "train",
        learning_rate=t.learning_rate,
        schedule=t.schedule,
        warmup_steps=t.warmup_steps,
        steps=t.steps,
        b1=t.b1,
        b2=t.b2,
        weight_decay=t.weight_decay,
        clip_norm=t.clip_norm,
    )
    return TrainConfig(
        optimizer=optimizer,
        length=target,
        global_batch=t.global_batch,
        accumulation=t.accumulation,
        loss_chunk=t.loss_chunk,
        checkpoint_every=t.checkpoint_every,
        keep=t.keep,
    )


def _optimizer(section: str, **fields) -> OptimizerConfig:
    try:
        return OptimizerConfig(**fields)
    except InputError as error:
        raise InputError(f"config.{section}.{error}") from None


def _factors(path: str) -> tuple:
    if not path:
        return ()
    try:
        factors = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"config.rope.factors: {path} cannot be read as JSON ({error})") from error
    if not isinstance(factors, list) or not factors:
        raise InputError(
            f"config.rope.factors: {path} must hold a list of numbers, one per frequency pair, or a list of such "
            "lists, one per layer"
        )
    return tuple(tuple(row) if isinstance(row, list) else row for row in factors)
