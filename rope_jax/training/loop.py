"""The training loop: steps, checkpoints, and a stop when the loss is no longer finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector
from rope_jax.training import trained
from rope_jax.training.checkpoints import Checkpoints, abstract_state
from rope_jax.training.lora import check_targets
from rope_jax.training.sharding import batch_sharding
from rope_jax.training.state import create_state, state_shardings
from rope_jax.training.step import train_step
from rope_jax.training.trained import TrainConfig


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite; the message names the step."""


def train(
    config: LlamaConfig,
    rope: ScaleVector,
    run: TrainConfig,
    mesh: Mesh,
    initial_params: Callable[[], dict],
    batches,
    folder: Path,
    report: Callable[[int], AbstractContextManager[Callable[[int, dict], None]]],
) -> tuple[dict, ScaleVector]:
    """Trains to `run.optimizer.steps`, going on from the newest checkpoint in `folder` if there is one.

    Resuming is bitwise the same as not having stopped: the data iterator's state is part of the checkpoint.

    Args:
        config: model config.
        rope: scale vector to train under, or to begin with if `run.learn`.
        run: see `TrainConfig`.
        mesh: from `make_mesh`.
        initial_params: called only if there is no checkpoint, or for the weights that stay frozen; gives sharded
            parameters, which are consumed.
        batches: iterator of int32 `[B, T]` dicts for this process, with `get_state` and `set_state`.
        folder: checkpoints go here; the last step is always saved.
        report: entered with the step training starts from; gives the function that is called with each step and
            its metrics (floats) once they are known.

    Returns:
        The trained, sharded parameters (with `run.lora`, its updates merged into them), and the scale vector that
        they go with.

    Raises:
        NonFiniteLoss: naming the step; checkpoints before it stay.
        InputError: if the newest checkpoint cannot be read, or `run.lora` does not fit the model.
    """
    if run.lora:
        check_targets(run.lora, config)
    with Checkpoints(folder, run.keep) as checkpoints, jax.set_mesh(mesh):
        frozen = initial_params() if run.lora else None
        state, start = _initial_state(config, rope, run, mesh, checkpoints, initial_params, frozen, batches)
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
        return trained.outcome(config, run, mesh, frozen, state.params, rope)


@partial(jax.jit, static_argnames=("config", "run", "mesh"), donate_argnums=0)
def _update(state, frozen, rows, rope, config, run, mesh):
    """A training step, keeping the state's layout. Compiled once for all runs that differ in `rope` alone."""
    optimizer = trained.optimizer(run)
    _, shardings = trained.layout(config, run, mesh, rope)
    layout = state_shardings(state.params, shardings, optimizer, mesh)
    state, metrics = train_step(state, rows, trained.loss(config, run, frozen, rope), optimizer)
    return jax.lax.with_sharding_constraint(state, layout), metrics


def _initial_state(config, rope, run, mesh, checkpoints, initial_params, frozen, batches):
    optimizer = trained.optimizer(run)
    abstract, shardings = trained.layout(config, run, mesh, rope)
    layout = state_shardings(abstract, shardings, optimizer, mesh)
    step = checkpoints.latest()
    if step is None:

        def create(params, frozen):
            return create_state(trained.initial(config, run, frozen if run.lora else params, rope), optimizer)

        # Frozen weights serve every step; what of them is trained whole is copied.
        params = None if run.lora else initial_params()
        return jax.jit(create, out_shardings=layout, donate_argnums=0)(params, frozen), 0
    shape = jax.eval_shape(partial(create_state, optimizer=optimizer), abstract)
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
