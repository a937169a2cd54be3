"""What a run trains: all weights or low-rank updates beside them, and the scale vector with them if asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import optax
from jax.sharding import Mesh

from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import abstract_params
from rope_jax.rope.embedding import ScaleVector
from rope_jax.sharding import param_shardings, replicated
from rope_jax.training import lora
from rope_jax.training.learn import LearnConfig, from_logarithms, joint_optimizer, to_logarithms
from rope_jax.training.lora import LoraConfig
from rope_jax.training.state import (
    OptimizerConfig,
    TrainState,
    create_state,
    in_host_memory,
    make_optimizer,
    state_shardings,
)
from rope_jax.training.step import summed_loss


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One run of training.

    Attributes:
        optimizer: of the weights, see `OptimizerConfig`; its `steps` is the length of the run.
        length: tokens per sequence, T.
        global_batch: sequences per update over all devices and accumulation steps.
        accumulation: microbatches per update, A.
        loss_chunk: tokens of a row projected to the vocabulary at a time.
        checkpoint_every: updates between checkpoints.
        keep: newest checkpoints kept.
        keep_best: checkpoints of the lowest loss that are kept beside them.
        lora: what is trained in place of all weights; None trains these.
        learn: how the scale vector is trained with the weights; None keeps it as it is.
        offload_optimizer: keep moments in the host's memory between updates.
        check_finite: name the first part of a step that is not finite.
    """

    optimizer: OptimizerConfig
    length: int
    global_batch: int = 64
    accumulation: int = 1
    loss_chunk: int = 512
    checkpoint_every: int = 100
    keep: int = 2
    keep_best: int = 0
    lora: LoraConfig | None = None
    learn: LearnConfig | None = None
    offload_optimizer: bool = False
    check_finite: bool = False


def layout(config: LlamaConfig, run: TrainConfig, mesh: Mesh, rope: ScaleVector) -> tuple[dict, dict]:
    """What a run trains, without any memory.

    Args:
        config: model config.
        run: see `TrainConfig`.
        mesh: from `make_mesh`.
        rope: scale vector, for its shape.

    Returns:
        Pytree of `jax.ShapeDtypeStruct`, and its shardings: parameters, or what `lora.init_trained` gives; with
        `run.learn` these are `weights` beside `rope`, logarithms of the scale vector.
    """
    if run.lora:
        weights = lora.abstract_trained(config, run.lora), lora.trained_shardings(config, run.lora, mesh)
    else:
        weights = abstract_params(config), param_shardings(config, mesh)
    if not run.learn:
        return weights
    vector = jax.eval_shape(to_logarithms, rope)
    return {"weights": weights[0], "rope": vector}, {
        "weights": weights[1],
        "rope": jax.tree.map(lambda _: replicated(mesh), vector),
    }


def state_layout(config: LlamaConfig, run: TrainConfig, mesh: Mesh, rope: ScaleVector) -> tuple[TrainState, TrainState]:
    """The state of a run between its updates, without any memory.

    Args:
        config: model config.
        run: see `TrainConfig`.
        mesh: from `make_mesh`.
        rope: scale vector, for its shape.

    Returns:
        `TrainState` of `jax.ShapeDtypeStruct`, and one of shardings.
    """
    update = optimizer(run)
    abstract, shardings = layout(config, run, mesh, rope)
    shardings = state_shardings(abstract, shardings, update, mesh)
    state = jax.eval_shape(partial(create_state, optimizer=update), abstract)
    return state, in_host_memory(state, shardings) if run.offload_optimizer else shardings


def optimizer(run: TrainConfig) -> optax.GradientTransformation:
    """The optimizer of all that a run trains."""
    weights = make_optimizer(run.optimizer)
    return joint_optimizer(weights, run.learn) if run.learn else weights


def initial(config: LlamaConfig, run: TrainConfig, params: dict, rope: ScaleVector) -> dict:
    """What a run trains, before its first step.

    Args:
        config: model config.
        run: see `TrainConfig`.
        params: parameters of `Llama`.
        rope: scale vector to begin with.

    Returns:
        As `layout` says.
    """
    weights = lora.init_trained(params, config, run.lora) if run.lora else params
    return {"weights": weights, "rope": to_logarithms(rope)} if run.learn else weights


def loss(
    config: LlamaConfig, run: TrainConfig, frozen: dict | None, rope: ScaleVector, mesh: Mesh | None = None
) -> Callable:
    """The loss of what a run trains, for `train_step`.

    Args:
        config: model config.
        run: see `TrainConfig`.
        frozen: parameters that stay as they are, if `run.lora`.
        rope: scale vector, unless it is trained.
        mesh: from `make_mesh`; None for one device.

    Returns:
        Function of `(trained, rows)`: summed NLL in nats, and tokens predicted.
    """

    def of(trained, rows):
        params, vector, adapters = computed(run, frozen, trained, rope)
        return summed_loss(params, rows, vector, config, run.loss_chunk, adapters, mesh)

    return of


def computed(run: TrainConfig, frozen: dict | None, trained: dict, rope: ScaleVector):
    """What the model computes with while it is trained.

    Args:
        run: see `TrainConfig`.
        frozen: parameters that stay as they are, if `run.lora`.
        trained: what is trained.
        rope: scale vector, unless it is trained.

    Returns:
        Parameters of `Llama`, the scale vector, and low-rank factors that the projections add, or None.
    """
    weights = trained
    if run.learn:
        weights, rope = trained["weights"], from_logarithms(trained["rope"])
    params, adapters = lora.applied(frozen, weights, run.lora) if run.lora else (weights, None)
    return params, rope, adapters


def outcome(
    config: LlamaConfig, run: TrainConfig, mesh: Mesh, frozen: dict | None, trained: dict, rope: ScaleVector
) -> tuple[dict, ScaleVector]:
    """The model that a run leaves.

    Args:
        config: model config.
        run: see `TrainConfig`.
        mesh: from `make_mesh`.
        frozen: parameters that stayed as they were, if `run.lora`; consumed.
        trained: what was trained.
        rope: scale vector that it was trained under, or began with.

    Returns:
        Sharded parameters of `Llama`, and the scale vector that they go with.
    """
    weights = trained
    if run.learn:
        weights, rope = trained["weights"], from_logarithms(trained["rope"])
    if run.lora:
        merge = partial(lora.merge, lora=run.lora)
        merged = jax.jit(merge, out_shardings=param_shardings(config, mesh), donate_argnums=0)
        weights = merged(frozen, weights)
    return weights, rope
