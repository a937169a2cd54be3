"""From a config's fields to the frozen dataclasses that the library takes, checked on the way."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rope_jax.data.tokenizer import Tokenizer
from rope_jax.errors import InputError
from rope_jax.interop.hf_config import read_config
from rope_jax.interop.hub import resolve_model
from rope_jax.model.config import LlamaConfig
from rope_jax.model.lora import LoraConfig
from rope_jax.rope.embedding import ScaleVector
from rope_jax.rope.factor_files import read_factors
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods import METHODS
from rope_jax.rope.methods.method import Method, Solution
from rope_jax.sharding import make_mesh
from rope_jax.training.config import TrainConfig
from rope_jax.training.learn import LearnConfig
from rope_jax.training.optimizer import OptimizerConfig

# The method that asks the model itself; the others need no weights.
LEARNED = "learned"
# The scaling that the model's own config says, which is nothing to solve for.
OWN = "own"


# Arguments of `rope_jax.rope` to the fields that they come from.
FIELDS = {
    "base": "config.rope.base",
    "head_dim": "config.rope.head_dim",
    "own": "config.model.path",
    "original": "config.context.original",
    "target": "config.context.target",
    "intervals": "config.angles.intervals",
    "arithmetic": "config.angles.arithmetic",
    "n_hat": "config.solve.n_hat",
    "threshold": "config.solve.threshold",
    "resolution": "config.solve.resolution",
    "new_base": "config.rope.new_base",
    "turning": "config.rope.turning",
    "factors": "config.rope.factors",
}


@dataclasses.dataclass(frozen=True)
class Extension:
    """What is extended, how the disturbance is measured, and every method with the run's parameters."""

    geometry: Geometry
    measure: Measure
    methods: dict[str, Method]

    def solve(self, method: str) -> Solution:
        """The solution of a method."""
        return self.methods[method](self.geometry, self.measure)


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
            architecture=p.architecture,
            attention_bias=p.architecture == "qwen2",
            context=config.context.original,
        ),
    )


def computed(config: ConfigDict, model: LlamaConfig, platform: str | None = None) -> LlamaConfig:
    """A model's shape with the run's way of computing it, on a platform such as 'gpu'; None is JAX's here."""
    m = config.model
    platform = platform or jax.default_backend()
    cpu = platform == "cpu"
    dtype = ("float32" if cpu else "bfloat16") if m.dtype == "auto" else m.dtype
    # Not 'cudnn', which takes a mask of T x T for packed documents.
    windowed_ring = config.mesh.context > 1 and model.sliding_window is not None  # which splash has not
    fastest = "splash" if platform == "tpu" and not windowed_ring else "cpu"
    return dataclasses.replace(
        model,
        dtype=dtype,
        param_dtype=model.param_dtype if m.param_dtype == "auto" else m.param_dtype,
        rotary=m.rotary,
        remat=m.remat,
        scan_unroll=m.scan_unroll,
        attention=fastest if m.attention == "auto" else m.attention,
        attention_chunk=m.attention_chunk,
    )


def model_extension(
    config: ConfigDict, model: LlamaConfig, own: ScaleVector, wanted: tuple[str, ...] | None = None
) -> Extension:
    """What is extended, from the run's fields and the model's own config.

    Args:
        config: the run's config.
        model: shape of the model.
        own: the scaling its config already carries.
        wanted: methods to check it for; None for those of the run.

    Returns:
        The extension, checked.

    Raises:
        InputError: naming the field that is wrong or disagrees with the model.
    """
    for field, value, found in (
        ("rope.base", config.rope.base, model.rope_base),
        ("rope.head_dim", config.rope.head_dim, model.head_dim),
    ):
        if value and value != found:
            raise InputError(
                f"config.{field} is {value:g}, but the model's is {found:g}: set it to 0 to take the model's"
            )
    original = config.context.original or model.context
    return extension(config, model.rope_base, model.head_dim, original, own, model.num_layers, wanted)


def extension(
    config: ConfigDict,
    base: float,
    head_dim: int,
    original: int,
    own: ScaleVector,
    layers: int | None,
    wanted: tuple[str, ...] | None = None,
) -> Extension:
    """What is extended, from the run's fields and a geometry.

    Args:
        config: the run's config.
        base: rotary base.
        head_dim: head dimension D.
        original: pre-training context, tokens.
        own: scaling that the model's config already carries.
        layers: layers of the model; None allows no factors per layer.
        wanted: methods to check it for; None for those of the run.

    Returns:
        The extension, checked.

    Raises:
        InputError: naming the field that is wrong.
    """
    if original < 0 or config.context.target < 0:
        raise InputError("config.context.original and .target are token counts: neither may be negative")
    wanted = methods(config) if wanted is None else wanted
    for method in wanted:
        if method not in (*METHODS, LEARNED):
            raise InputError(f"config.rope.method is {method!r}: use one of {', '.join((*METHODS, LEARNED))}")
    if LEARNED in wanted:
        learning(config)
        if config.learn.start not in METHODS:
            raise InputError(f"config.learn.start is {config.learn.start!r}: use one of {', '.join(METHODS)}")
        wanted = (config.learn.start, *(method for method in wanted if method != LEARNED))
    try:
        geometry = Geometry(base, head_dim, own, layers)
        measure = Measure(
            original,
            config.context.target or 2 * original,
            intervals=config.angles.intervals,
            arithmetic=config.angles.arithmetic,
        )
        factors, attention_factor = _factors(config.rope.factors)
        parameters = {
            "abf": {"new_base": config.rope.new_base},
            "p_rope": {"turning": config.rope.turning},
            "dprope": {"n_hat": config.solve.n_hat, "threshold": config.solve.threshold},
            "dprope_robust": {"resolution": config.solve.resolution},
            "explicit": {"factors": factors, "attention_factor": attention_factor},
        }
        built = {name: method(**parameters.get(name, {})) for name, method in METHODS.items()}
        for name in ("dprope", *wanted):
            built[name].check(geometry, measure)
    except InputError as error:
        raise error.renamed(FIELDS) from None
    return Extension(geometry, measure, built)


def learning(config: ConfigDict) -> LearnConfig:
    """How the method 'learned' learns."""
    for field in ("steps", "batch"):
        if config.learn[field] < 1:
            raise InputError(f"config.learn.{field} is {config.learn[field]}: it must be at least 1")
    with renamed(config, "learn"):
        return LearnConfig(config.learn.learning_rate, config.learn.attention_factor, config.train.loss_chunk)


def pretraining(config: ConfigDict) -> TrainConfig:
    """The run that trains the small model."""
    with renamed(config, "pretrain", length="config.context.original"):
        return _pretraining(config)


def _pretraining(config: ConfigDict) -> TrainConfig:
    p = config.pretrain
    optimizer = OptimizerConfig(
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
        check_finite=config.debug.nans,
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
    with renamed(config, "train", length="config.context.target"):
        return _fine_tuning(config, target)


def _fine_tuning(config: ConfigDict, target: int) -> TrainConfig:
    t = config.train
    optimizer = OptimizerConfig(
        learning_rate=t.learning_rate,
        schedule=t.schedule,
        warmup_steps=t.warmup_steps,
        steps=t.steps,
        b1=t.b1,
        b2=t.b2,
        weight_decay=t.weight_decay,
        clip_norm=t.clip_norm,
        mu_dtype=t.mu_dtype,
    )
    return TrainConfig(
        optimizer=optimizer,
        length=target,
        global_batch=t.global_batch,
        accumulation=t.accumulation,
        loss_chunk=t.loss_chunk,
        checkpoint_every=t.checkpoint_every,
        keep=t.keep,
        keep_best=t.keep_best,
        lora=_lora(config),
        offload_optimizer=t.offload_optimizer,
        check_finite=config.debug.nans,
    )


def method_tuning(config: ConfigDict, target: int, method: str) -> TrainConfig:
    """`fine_tuning` of one method: 'learned' may go on learning its vector.

    Args:
        config: the run's config.
        target: extended context, tokens per sequence.
        method: name of the method.

    Returns:
        The run.
    """
    joint = method == LEARNED and config.learn.joint
    return dataclasses.replace(fine_tuning(config, target), learn=learning(config) if joint else None)


def _lora(config: ConfigDict) -> LoraConfig | None:
    lora = config.train.lora
    if lora.rank == 0:
        return None
    return LoraConfig(lora.rank, lora.alpha, tuple(lora.targets), config.seed)


def mesh(config: ConfigDict) -> Mesh:
    """The run's device mesh."""
    with renamed(config, "mesh"):
        return make_mesh(**config.mesh)


@contextlib.contextmanager
def renamed(config: ConfigDict, section: str, **names: str):
    """Renames arguments in errors to the config's fields: those of a section, of what it holds, and of the mesh."""
    fields = {field: f"config.mesh.{field}" for field in config.mesh}
    fields |= {field: f"config.train.{field}" for field in ("loss_chunk",)} | {"remat": "config.model.remat"}
    if section == "train":
        fields |= {field: f"config.train.lora.{field}" for field in config.train.lora}
    fields |= {field: f"config.{section}.{field}" for field in config[section]} | names
    try:
        yield
    except InputError as error:
        raise error.renamed(fields) from None


def _factors(path: str) -> tuple[tuple, float]:
    """Factors and attention factor of method 'explicit', from a file or from a model that already scales."""
    if not path:
        return (), 1.0
    if Path(path).is_dir():
        rope = read_config(Path(path)).rope
        return tuple(np.asarray(rope.factors, float).tolist()), float(rope.attention_factor)
    try:
        return read_factors(path), 1.0
    except InputError as error:
        raise InputError(f"config.rope.factors: {error}", field="config.rope.factors") from None


def model_folder(path: str, field: str = "config.model.path") -> Path:
    """The folder of a model that `field` names."""
    try:
        return resolve_model(path)
    except InputError as error:
        raise error.renamed({"path": field}) from None
