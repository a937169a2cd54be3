"""Traces of training steps for TensorBoard and Perfetto."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from rope_jax.errors import require


@dataclasses.dataclass(frozen=True)
class Profile:
    """The steps to trace, `first` to `last` from 1. The first step of a run includes compilation."""

    folder: Path
    first: int
    last: int

    def __post_init__(self):
        require(self, "first", self.first >= 1, "steps count from 1")
        require(self, "last", self.last >= self.first, f"it must not lie before `first` = {self.first}")


def traced(steps: range, profile: Profile | None, wait: Callable[[], object]) -> Iterator[int]:
    """Yields the steps of a loop and traces some; `wait` blocks until devices have finished the last of these."""
    if profile is None:
        yield from steps
        return
    wanted = [step for step in steps if profile.first <= step <= profile.last]
    with contextlib.ExitStack() as trace:  # also ends the trace if the loop is left during it
        for step in steps:
            if wanted and step == wanted[0]:
                jax.profiler.start_trace(profile.folder, profiler_options=_options())
                trace.callback(jax.profiler.stop_trace)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                yield step
            if wanted and step == wanted[-1]:
                wait()
                trace.close()


def _options() -> jax.profiler.ProfileOptions:
    options = jax.profiler.ProfileOptions()
    # Tracing every Python call says little about a compiled step, and hooks into all threads, including those that
    # write checkpoints: one of many runs ended in it with a segmentation fault.
    options.python_tracer_level = 0
    return options
