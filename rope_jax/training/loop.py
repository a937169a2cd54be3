"""The training loop: steps, checkpoints, and a stop when that is asked for or the loss is no longer finite."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rope_jax import multihost
from rope_jax.data.pipeline import join_states
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import abstract_params
from rope_jax.rope.embedding import ScaleVector
from rope_jax.sharding import batch_sharding, param_shardings, place_rows, process_rows, replicated
from rope_jax.training import trained
from rope_jax.training.checkpoints import Checkpoints, abstract_state
from rope_jax.training.finite import all_finite, explain
from rope_jax.training.lora import check_targets
from rope_jax.training.profiling import Profile, traced
from rope_jax.training.state import create_state
from rope_jax.training.step import train_step
from rope_jax.training.trained import TrainConfig


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite; the message names the step."""


class Stopped(Exception):
    """Training was asked to stop, and did behind a step that it has saved; the message names the step."""


def train(
    config: LlamaConfig,
    rope: ScaleVector,
    run: TrainConfig,
    mesh: Mesh,
    initial_params: Callable[[], dict],
    batches,
    folder: Path,
    report: Callable[[int], AbstractContextManager[Callable[[int, dict], None]]],
    should_stop: Callable[[], bool] = lambda: False,
    profile: Profile | None = None,
) -> tuple[dict, ScaleVector]:
    """Trains to `run.optimizer.steps`, going on from the newest intact checkpoint in `folder` if there is one.

    Resuming is bitwise the same as not having stopped: the data iterator's state is part of the checkpoint. All
    processes of a run call this, with the same arguments; a run may go on in another number of them, on another mesh.

    Args:
        config: model config.
        rope: scale vector to train under, or to begin with if `run.learn`.
        run: see `TrainConfig`.
        mesh: from `make_mesh`.
        initial_params: called only if there is no checkpoint, or for the weights that stay frozen; gives sharded
            parameters, which are consumed.
        batches: iterator of microbatches, `run.accumulation` of them per update: int32 `[B, T]` dicts of this
            process's rows (see `process_rows`), with `get_state` and `set_state` as of `TrainingBatches`.
        folder: checkpoints go here; the last step is always saved. A checkpoint's loss is the mean over the last
            `run.checkpoint_every` steps, which in the first epoch, where batches are new to the model, is that of
            held-out data.
        report: entered with the step training starts from; gives the function that is called with each step and
            its metrics (floats) once they are known.
        should_stop: asked once per step; if it says yes in any process, all of them save and stop one or two steps
            later, behind the same step.
        profile: steps to trace, None for none.

    Returns:
        The trained, sharded parameters (with `run.lora`, its updates merged into them), and the scale vector that
        they go with.

    Raises:
        NonFiniteLoss: naming the step; checkpoints before it stay.
        Stopped: naming the step that was saved.
        InputError: if no checkpoint in the folder can be read, or `run.lora` does not fit the model.
    """
    if run.lora:
        check_targets(run.lora, config)
    with Checkpoints(folder, run.keep, run.keep_best) as checkpoints, jax.set_mesh(mesh):
        frozen = initial_params() if run.lora else None
        state, start, losses = _initial_state(config, rope, run, mesh, checkpoints, initial_params, frozen, batches)
        stopping = multihost.ask_all(should_stop, mesh)
        with report(start) as on_step:
            pending = None

            def settle():
                nonlocal pending
                if pending:
                    losses.append(_settle(*pending, on_step))
                pending = None

            def wait():
                jax.block_until_ready(state)

            for step in traced(range(start + 1, run.optimizer.steps + 1), profile, wait):
                rows = _place(batches, run, mesh)
                state, metrics = _update(state, frozen, rows, rope, config, run, mesh)
                if run.check_finite:
                    _check_finite(step, state, metrics, frozen, rows, rope, config, run, mesh)
                # A step's metrics are read once the next step is under way, so that devices never wait for us; so
                # are the votes on stopping.
                settle()
                pending = (step, metrics)
                stop = stopping()
                if stop or step % run.checkpoint_every == 0 or step == run.optimizer.steps:
                    settle()
                    progress = {"batches": _position(batches), "losses": list(losses)}
                    checkpoints.save(state, progress, math.fsum(losses) / len(losses))
                if stop:
                    raise Stopped(f"stopped behind step {step} of {run.optimizer.steps}, which is saved")
                stopping = multihost.ask_all(should_stop, mesh)
        return trained.outcome(config, run, mesh, frozen, state.params, rope)


@partial(jax.jit, static_argnames=("config", "run", "mesh"), donate_argnums=0)
def _update(state, frozen, rows, rope, config, run, mesh):
    """A training step, keeping the state's layout. Compiled once for all runs that differ in `rope` alone."""
    optimizer = trained.optimizer(run)
    _, layout = trained.state_layout(config, run, mesh, rope)
    if run.offload_optimizer:
        near = jax.tree.map(lambda sharding: sharding.with_memory_kind("device"), layout.opt_state)
        state = dataclasses.replace(state, opt_state=jax.device_put(state.opt_state, near))
    loss = trained.loss(config, run, frozen, rope, mesh)
    state, metrics = train_step(state, rows, loss, optimizer, run.check_finite)
    return jax.device_put(state, layout), metrics


def abstract_update(config: LlamaConfig, rope: ScaleVector, run: TrainConfig, mesh: Mesh) -> jax.stages.Traced:
    """The program of a step, traced from shapes: `train` compiles the same from arrays.

    Args:
        config: model config.
        rope: scale vector, for its shape.
        run: see `TrainConfig`.
        mesh: from `make_mesh`; devices may be virtual.

    Returns:
        The traced step, to be lowered and compiled.
    """
    state, layout = trained.state_layout(config, run, mesh, rope)
    shape = run.accumulation, run.global_batch // run.accumulation, run.length
    rows = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(mesh, leading=1))
    rows = dict.fromkeys(("tokens", "segment_ids", "positions"), rows)
    frozen = abstract_state(abstract_params(config), param_shardings(config, mesh)) if run.lora else None
    vector = abstract_state(rope, jax.tree.map(lambda _: replicated(mesh), rope))
    with jax.set_mesh(mesh):
        return _update.trace(abstract_state(state, layout), frozen, rows, vector, config, run, mesh)


def _initial_state(config, rope, run, mesh, checkpoints, initial_params, frozen, batches):
    optimizer = trained.optimizer(run)
    shape, layout = trained.state_layout(config, run, mesh, rope)
    losses = deque(maxlen=run.checkpoint_every)
    if checkpoints.latest() is None:

        def create(params, frozen):
            return create_state(trained.initial(config, run, frozen if run.lora else params, rope), optimizer)

        # Frozen weights serve every step; what of them is trained whole is copied.
        params = None if run.lora else initial_params()
        return jax.jit(create, out_shardings=layout, donate_argnums=0)(params, frozen), 0, losses
    state, progress = checkpoints.restore(abstract_state(shape, layout))
    batches.set_state(progress["batches"])
    losses.extend(progress["losses"])
    return state, int(state.step), losses


def _position(batches) -> dict:
    """The data iterator's state, for any number of processes."""
    state = batches.get_state()
    return state if jax.process_count() == 1 else join_states(multihost.gather(state))


def _place(batches, run: TrainConfig, mesh: Mesh) -> dict:
    """The rows of an update, int32 `[A, B, T]` over all devices."""
    rows = run.global_batch // run.accumulation
    held, sharding = process_rows(mesh, rows), batch_sharding(mesh, leading=1)
    parts = [next(batches) for _ in range(run.accumulation)]
    return {name: place_rows(np.stack([p[name] for p in parts]), held, rows, sharding, 1) for name in parts[0]}


def _check_finite(step, state, metrics, frozen, rows, rope, config, run, mesh) -> None:
    """Stops at a step that is not finite, which has changed nothing, with the name of what began it."""
    flags = metrics.pop("finite")
    if not (math.isfinite(metrics["loss"]) and all_finite(flags)):
        params, vector, adapters = trained.computed(run, frozen, state.params, rope)
        where = explain(flags, params, rows, vector, config, adapters, mesh)
        raise NonFiniteLoss(f"step {step} is not finite, beginning with {where}; checkpoints before it are kept")


def _settle(step, metrics, on_step) -> float:
    metrics = {name: float(value) for name, value in metrics.items()}
    if not math.isfinite(metrics["loss"]):
        raise NonFiniteLoss(
            f"the loss is {metrics['loss']} at step {step}; checkpoints before it are kept. Lower the learning rate or "
            "clip gradients (learning_rate, clip_norm) and start over in another folder"
        )
    on_step(step, metrics)
    return metrics["loss"]
