"""What a person at the terminal sees."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from tqdm import tqdm

from rope_jax.multihost import is_first


def say(text: str) -> None:
    """Prints a line at once, also into a file; of several processes, the first does."""
    if is_first():
        print(text, flush=True)


def bar(description: str) -> Callable[[Iterable], Iterable]:
    """A wrapper that shows how far an iterable has come, while it runs."""
    return lambda items: tqdm(items, desc=f"  {description}", leave=False, file=sys.stderr, disable=not is_first())


@contextlib.contextmanager
def byte_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over bytes written.

    Args:
        description: what is written.

    Yields:
        A function of the bytes done and the bytes in all that moves the bar.
    """
    shown = {"unit": "B", "unit_scale": True, "leave": False, "file": sys.stderr, "disable": not is_first()}
    with tqdm(desc=f"  {description}", **shown) as progress:

        def update(done: int, total: int) -> None:
            progress.total = total
            progress.update(done - progress.n)

        yield update


def first_step(what: str) -> Callable[[], None]:
    """Says that the first step of training is being compiled.

    Args:
        what: what is trained.

    Returns:
        Function to call after that step, which says how long it took.
    """
    tqdm.write(f"  {what}: compiling the training step, minutes for a large model", file=sys.stderr)
    began = time.monotonic()
    return lambda: tqdm.write(f"  {what}: the first step took {time.monotonic() - began:.1f} s", file=sys.stderr)


@contextlib.contextmanager
def training_bar(
    description: str, steps: int, start: int, tokens_per_step: int
) -> Iterator[Callable[[int, dict], None]]:
    """A bar over training steps with loss, tokens per second and the time that remains.

    Args:
        description: what is trained.
        steps: steps of the whole run.
        start: step the run goes on from.
        tokens_per_step: of all devices.

    Yields:
        A function of step and metrics that moves the bar.
    """
    shown = {"unit": "step", "file": sys.stderr, "disable": not is_first()}
    with tqdm(total=steps, initial=start, desc=f"  {description}", **shown) as progress:
        began, first = time.monotonic(), None

        def update(step: int, metrics: dict) -> None:
            nonlocal began, first
            if first is None:
                # The first step includes compilation, which says nothing about the steps to come.
                began, first = time.monotonic(), step
            seconds = time.monotonic() - began
            speed = (step - first) * tokens_per_step / seconds if step > first else 0.0
            progress.set_postfix(loss=f"{metrics['loss']:.4f}", tokens_per_s=f"{speed:,.0f}", refresh=False)
            progress.update(step - progress.n)

        yield update
