"""The training loop: steps, checkpoints, and a stop when the loss is no longer finite."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import abstract_params
from rope_jax.rope.embedding import ScaleVector
from rope_jax.training.checkpoints import Checkpoints, abstract_state
from rope_jax.training.lora import (
    LoraConfig,
    abstract_trained,
    check_targets,
    init_trained,
    lora_step,
    merge,
    trained_shardings,
)
from rope_jax.training.sharding import batch_sharding, param_shardings
from rope_jax.training.state import OptimizerConfig, create_state, make_optimizer, state_shardings
from rope_jax.training.step import train_step


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite; the message names the step."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One run of training.

    Attributes:
        optimizer: see `OptimizerConfig`; its `steps` is the length of the run.
        length: tokens per sequence, T.
        global_batch: sequences per update over all devices and accumulation steps.
        accumulation: microbatches per update, A.
        loss_chunk: tokens of a row projected to the vocabulary at a time.
        checkpoint_every: updates between checkpoints.
        keep: checkpoints kept.
        lora: what is trained in place of all weights; None trains these.
    """

    optimizer: OptimizerConfig
    length: int
    global_batch: int = 64
    accumulation: int = 1
    loss_chunk: int = 512
    checkpoint_every: int = 100
    keep: int = 1
    lora: LoraConfig | None = None


def train(
    config: LlamaConfig,
    rope: ScaleVector,
    run: TrainConfig,
    mesh: Mesh,
    initial_params: Callable[[], dict],
    batches,
    folder: Path,
    report: Callable[[int], AbstractContextManager[Callable[[int, dict], None]]],
) -> dict:
    """Trains to `run.optimizer.steps`, going on from the newest checkpoint in `folder` if there is one.

    Resuming is bitwise the same as not having stopped: the data iterator's state is part of the checkpoint.

    Args:
        config: model config.
        rope: scale vector to train under.
        run: see `TrainConfig`.
        mesh: from `make_mesh`.
        initial_params: called only if there is no checkpoint, or for the weights that stay frozen; gives sharded
            parameters, which are consumed.
        batches: iterator of int32 `[B, T]` dicts for this process, with `get_state` and `set_state`.
        folder: checkpoints go here; the last step is always saved.
        report: entered with the step training starts from; gives the function that is called with each step and
            its metrics (floats) once they are known.

    Returns:
        The trained, sharded parameters; with `run.lora`, its updates merged into them.

    Raises:
        NonFiniteLoss: naming the step; checkpoints before it stay.
        InputError: if the newest checkpoint cannot be read, or `run.lora` does not fit the model.
    """
    if run.lora:
        check_targets(run.lora, config)
    with Checkpoints(folder, run.keep) as checkpoints, jax.set_mesh(mesh):
        frozen = initial_params() if run.lora else None
        state, start = _initial_state(config, run, mesh, checkpoints, initial_params, frozen, batches)
        with report(start) as on_step:
            pending = None
            for step in range(start + 1, run.optimizer.steps + 1):
                rows = _place(next(batches), run.accumulation, mesh)
                state, metrics = _update(state, frozen, rows, rope, config, run, mesh)
                # A step's metrics are read once the next step is under way, so that devices never wait for us.
                _settle(pending, on_step)
                pending = (step, metrics)
                if step % run.checkpoint_every == 0 or step == run.optimizer.steps:
                    _settle(pending, on_step)
                    pending = None
                    checkpoints.save(state, batches.get_state())
        return merged(config, run, mesh, frozen, state.params) if run.lora else state.params


def merged(config: LlamaConfig, run: TrainConfig, mesh: Mesh, frozen, trained) -> dict:
    """Parameters with a run's low-rank updates in them.

    Args:
        config: model config.
        run: a run with `lora`.
        mesh: from `make_mesh`.
        frozen: sharded parameters, which are consumed.
        trained: what was trained beside them.

    Returns:
        Sharded parameters.
    """
    shardings = param_shardings(config, mesh)
    return jax.jit(partial(merge, lora=run.lora), out_shardings=shardings, donate_argnums=0)(frozen, trained)


def trained_layout(config: LlamaConfig, run: TrainConfig, mesh: Mesh) -> tuple[dict, dict]:
    """What a run trains, without any memory.

    Args:
        config: model config.
        run: see `TrainConfig`.
        mesh: from `make_mesh`.

    Returns:
        Pytree of `jax.ShapeDtypeStruct`, and its shardings.
    """
    if run.lora:
        return abstract_trained(config, run.lora), trained_shardings(config, run.lora, mesh)
    return abstract_params(config), param_shardings(config, mesh)


@partial(jax.jit, static_argnames=("config", "run", "mesh"), donate_argnums=0)
def _update(state, frozen, rows, rope, config, run, mesh):
    """A training step, keeping the state's layout. Compiled once for all runs that differ in `rope` alone."""
    optimizer = make_optimizer(run.optimizer)
    layout = state_shardings(state.params, trained_layout(config, run, mesh)[1], optimizer, mesh)
    common = {"config": config, "optimizer": optimizer, "loss_chunk": run.loss_chunk}
    if run.lora:
        state, metrics = lora_step(state, frozen, rows, rope, lora=run.lora, **common)
    else:
        state, metrics = train_step(state, rows, rope, **common)
    return jax.lax.with_sharding_constraint(state, layout), metrics


def _initial_state(config, run, mesh, checkpoints, initial_params, frozen, batches):
    optimizer = make_optimizer(run.optimizer)
    params, shardings = trained_layout(config, run, mesh)
    layout = state_shardings(params, shardings, optimizer, mesh)
    step = checkpoints.latest()
    if step is None:
        create = partial(create_state, optimizer=optimizer)
        if run.lora:
            # What is trained whole is copied, because the frozen weights serve every step.
            return jax.jit(lambda f: create(init_trained(f, config, run.lora)), out_shardings=layout)(frozen), 0
        return jax.jit(create, out_shardings=layout, donate_argnums=0)(initial_params()), 0
    shape = jax.eval_shape(partial(create_state, optimizer=optimizer), params)
    state, data_state = checkpoints.restore(abstract_state(shape, layout))
    batches.set_state(data_state)
    return state, step


def _place(rows: dict, accumulation: int, mesh: Mesh) -> dict:
    sharding = batch_sharding(mesh, leading=1)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.reshape(value, (accumulation, -1, value.shape[-1])))
        for name, value in rows.items()
    }


def _settle(pending, on_step) -> None:
    if pending is None:
        return
    step, metrics = pending
    metrics = {name: float(value) for name, value in metrics.items()}
    if not math.isfinite(metrics["loss"]):
        raise NonFiniteLoss(
            f"the loss is {metrics['loss']} at step {step}; checkpoints before it are kept. Lower the learning rate or "
            "clip gradients (learning_rate, clip_norm) and start over in another folder"
        )
    on_step(step, metrics)
