"""The training loop: resume, step, checkpoint, stop."""

import dataclasses
import math
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import jax
import numpy as np

from rope_jax import multihost
from rope_jax.data.mixed import SHORT
from rope_jax.data.pipeline import join_states
from rope_jax.rope.embedding import ScaleVector
from rope_jax.sharding import batch_sharding, place_rows, process_rows, replicated
from rope_jax.training.checkpoints import Checkpoints
from rope_jax.training.finite import NonFiniteLoss, all_finite, explain, finite
from rope_jax.training.profiling import Profile, traced
from rope_jax.training.state import TrainState, Variables, create_state
from rope_jax.training.update import Training, update

_REMEDY = "earlier checkpoints are kept. Lower `learning_rate` or set `clip_norm`, and start over in another folder"


class Stopped(Exception):
    """Training stopped on request after a step that it saved; the message names the step."""


@dataclasses.dataclass(frozen=True)
class Callbacks:
    """What the caller of `train` sees and decides on the way.

    Attributes:
        report: context manager, entered with the step that training starts from; gives the function that is called
            with each step and its metrics (floats).
        should_stop: polled once per step. If it returns True in any process, all of them save and stop one or two
            steps later, after the same step.
        profile: steps to trace, None for none.
    """

    report: Callable[[int], AbstractContextManager[Callable[[int, dict], None]]]
    should_stop: Callable[[], bool]
    profile: Profile | None = None


@dataclasses.dataclass(frozen=True)
class Start:
    """The model that training starts from.

    Attributes:
        rope: its scale vector.
        load: returns its sharded parameters, which training consumes; called only if there is no checkpoint, or for
            weights that stay frozen.
        original: scale vector of microbatches of short documents, shaped like `rope`; None without a mix.
    """

    rope: ScaleVector
    load: Callable[[], dict]
    original: ScaleVector | None = None

    def base(self, params: dict | None) -> Variables:
        return Variables(params, self.rope, original=self.original)


def train(training: Training, start: Start, batches, folder: Path, callbacks: Callbacks) -> Variables:
    """Trains for `optimizer.steps` updates, resuming from the newest intact checkpoint in `folder`.

    A resumed run is bitwise identical to an uninterrupted one: checkpoints hold the data iterator's position. All
    processes of a run call this with the same arguments; a run may resume in another number of processes and on
    another mesh.

    Args:
        training: model, configuration and mesh.
        start: the model to start from.
        batches: iterator of microbatches, `accumulation` of them per update: int32 `[B, T]` dicts of this process's
            rows, with `get_state` and `set_state`; with a mix also the bool `short`.
        folder: folder of the checkpoints; the last step is always saved, and none that is not finite. A checkpoint's
            loss is the mean over the
            last `checkpoint_every` steps, a held-out loss in the first epoch, where batches are new to the model.
        callbacks: reporting, stopping and profiling.

    Returns:
        The trained model, sharded, with low-rank updates merged.

    Raises:
        NonFiniteLoss: if a loss, gradient or weight is not finite; earlier checkpoints are kept.
        Stopped: if `callbacks.should_stop` asked for it.
        InputError: if the run does not fit the model or the mesh, or no checkpoint in the folder can be read.
    """
    training.check()
    config, mesh = training.config, training.mesh
    with Checkpoints(folder, config.keep, config.keep_best) as checkpoints, jax.set_mesh(mesh):
        losses = deque(maxlen=config.checkpoint_every)
        if checkpoints.latest() is None:
            state, frozen = _initial_state(training, start)
        else:
            state, frozen, progress = _resumed_state(training, start, checkpoints)
            batches.set_state(progress["batches"])
            losses.extend(progress["losses"])
        first = int(state.step) + 1
        stopping = multihost.ask_all(callbacks.should_stop, mesh)
        with callbacks.report(first - 1) as on_step:
            pending = None

            def settle():
                nonlocal pending
                if pending:
                    losses.append(_settled(*pending, on_step))
                pending = None

            def wait():
                jax.block_until_ready(state)

            for step in traced(range(first, config.optimizer.steps + 1), callbacks.profile, wait):
                rows = _next_rows(batches, training)
                state, metrics = update(state, frozen, rows, training)
                if config.check_finite and (found := _non_finite(training, state, frozen, rows, metrics)):
                    raise NonFiniteLoss(
                        f"step {step} is not finite, beginning with {found}; earlier checkpoints are kept"
                    )
                # Metrics of a step, and votes on stopping, are read once the next step is under way, so that devices
                # never wait for the host.
                settle()
                pending = (step, metrics)
                stop = stopping()
                if stop or step % config.checkpoint_every == 0 or step == config.optimizer.steps:
                    settle()
                    progress = {"batches": _position(batches), "losses": list(losses)}
                    _save(checkpoints, state, progress)
                if stop:
                    raise Stopped(f"stopped after step {step} of {config.optimizer.steps}, which is saved")
                stopping = multihost.ask_all(callbacks.should_stop, mesh)
        trained = training.objective.result(state.params, frozen, mesh)
    if training.model.param_dtype != "float32" and not all_finite(finite(trained.params)):
        raise NonFiniteLoss(
            f"the trained weights exceed what `param_dtype` = {training.model.param_dtype!r} holds; the checkpoints "
            "are kept. Start over in another folder, with 'bfloat16' or 'float32'"
        )
    return trained


def _initial_state(training: Training, start: Start) -> tuple[TrainState, Variables]:
    """The state before the first update, and what of the base stays frozen."""
    objective = training.objective
    base = start.base(start.load())
    frozen = objective.frozen(base)

    def create(params):
        return create_state(objective.start(dataclasses.replace(base, params=params)), training.optimizer)

    # Frozen parameters serve every step; others become part of the state, unless it holds wider ones.
    donate = 0 if frozen.params is None and training.model.param_dtype == "float32" else ()
    shardings = training.state_shardings(jax.eval_shape(objective.start, base))
    return jax.jit(create, out_shardings=shardings, donate_argnums=donate)(base.params), frozen


def _resumed_state(training: Training, start: Start, checkpoints: Checkpoints) -> tuple[TrainState, Variables, dict]:
    """The newest checkpoint's state, what of the base stays frozen, and the checkpoint's progress."""
    state, progress = checkpoints.restore(training.abstract_state(start.rope))
    frozen = training.objective.frozen(training.abstract_base(start.rope))
    params = start.load() if frozen.params is not None else None
    return state, training.objective.frozen(start.base(params)), progress


def _next_rows(batches, training: Training) -> dict:
    """The rows of an update, over all devices, as `Training.abstract_rows` describes them."""
    rows, mesh = training.config.rows, training.mesh
    held, sharding = process_rows(mesh, rows), batch_sharding(mesh, leading=1)
    parts = [next(batches) for _ in range(training.config.accumulation)]
    stacked = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    flags = {SHORT: stacked.pop(SHORT)} if SHORT in stacked else {}
    count, whole = len(parts), replicated(mesh)
    placed = {name: place_rows(values, held, rows, sharding, axis=1) for name, values in stacked.items()}
    return placed | {name: place_rows(values, range(count), count, whole, axis=0) for name, values in flags.items()}


def _position(batches) -> dict:
    """The data iterator's state, for any number of processes."""
    state = batches.get_state()
    return state if jax.process_count() == 1 else join_states(multihost.gather(state))


def _non_finite(training: Training, state: TrainState, frozen: Variables, rows: dict, metrics: dict) -> str:
    """Names the first part of a step that is not finite, which left the state unchanged; empty if all is finite."""
    flags = metrics.pop("finite")
    if math.isfinite(metrics["loss"]) and all_finite(flags):
        return ""
    variables = training.objective.variables(state.params, frozen)
    return explain(flags, variables, rows, training.model, training.mesh)


def _save(checkpoints: Checkpoints, state: TrainState, progress: dict) -> None:
    """Saves a state whose metrics are finite; the optimizer may still have made it otherwise."""
    try:
        checkpoints.save(state, progress, math.fsum(progress["losses"]) / len(progress["losses"]))
    except NonFiniteLoss as error:
        raise NonFiniteLoss(f"{error}; {_REMEDY}") from None


def _settled(step: int, metrics: dict, on_step: Callable[[int, dict], None]) -> float:
    """Waits for a step's metrics, reports them and returns the loss."""
    metrics = {name: float(value) for name, value in metrics.items()}
    for name, what in (("loss", "loss"), ("grad_norm", "gradient norm")):
        if not math.isfinite(metrics[name]):
            raise NonFiniteLoss(f"the {what} is {metrics[name]} at step {step}; {_REMEDY}")
    on_step(step, metrics)
    return metrics["loss"]
