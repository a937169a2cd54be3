"""One training of a run, with metrics on disk and progress for the user."""

import contextlib
import time
from collections.abc import Iterator
from functools import partial

from rope_jax import multihost
from rope_jax.commands.reporter import Reporter, StepProgress
from rope_jax.commands.run import Run
from rope_jax.plan.chips import GIB
from rope_jax.plan.memory import account, measured
from rope_jax.report.metrics import MetricsWriter
from rope_jax.runs.folder import RunFolder
from rope_jax.training.loop import Callbacks, Start, train
from rope_jax.training.profiling import Profile
from rope_jax.training.state import Variables
from rope_jax.training.update import Training


def fit(run: Run, training: Training, start: Start, place: RunFolder, reporter: Reporter) -> Variables:
    """Trains, or resumes from the newest checkpoint.

    `place` is the folder of checkpoints, metrics and trace; its name describes the training to the user.
    """
    config = training.config
    batches = run.batches(config.rows, config, config.mix)
    profile = Profile(place / "profile", *run.profile) if run.profile else None
    with reporter.deferred_stop() as should_stop:
        callbacks = Callbacks(partial(_report, training, start, place, reporter), should_stop, profile)
        return train(training, start, batches, place / "checkpoints", callbacks)


@contextlib.contextmanager
def _report(
    training: Training, start: Start, place: RunFolder, reporter: Reporter, resumed: int
) -> Iterator[StepProgress]:
    """Writes each step's metrics and shows them."""
    config, what = training.config, place.path.name
    bar = reporter.training_bar(
        what, steps=config.optimizer.steps, start=resumed, tokens_per_step=config.global_batch * config.length
    )
    with contextlib.ExitStack() as stack:
        metrics = stack.enter_context(MetricsWriter(place.path, resumed)) if multihost.is_first() else None
        show = stack.enter_context(bar)
        last = time.monotonic()

        def on_step(step: int, values: dict) -> None:
            nonlocal last
            if step == resumed + 1:
                _say_memory(training, start, reporter)
            now = time.monotonic()
            if metrics:
                metrics.write(step, {**values, "seconds": now - last})
            last = now
            show(step, values)

        yield on_step


def _say_memory(training: Training, start: Start, reporter: Reporter) -> None:
    """Compares the memory that a device has held with the plan, where devices count it."""
    peak = measured(training.mesh)
    if peak is not None:
        planned = account(training, start.rope).peak
        reporter.say(f"  memory: {peak / GIB:.1f} GiB on a device so far; planned for a step {planned / GIB:.1f} GiB")
