"""SIGTERM and Ctrl-C: training stops behind a step and saves it, everything else stops where it is."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from rope_jax.training.loop import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Terminated(BaseException):
    """The command was asked to end, by a signal to this process or to another of the run.

    Args:
        number: the signal.
        message: what was saved; empty if nothing had to be.
    """

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number = number


def end_on_sigterm() -> None:
    """Lets SIGTERM unwind as Ctrl-C does, so that nothing half-written stays behind."""

    def end(number, frame):
        raise Terminated(number)

    signal.signal(signal.SIGTERM, end)


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Defers signals while `rope_jax.training.loop.train` runs; a second one ends the process at once.

    Yields:
        What `train` takes as `should_stop`.

    Raises:
        Terminated: once training has stopped, or if a signal came behind its last step.
    """
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may handle signals.
        yield lambda: False
        return
    received: list[int] = []

    def note(number, frame):
        received.append(number)
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        # Unbuffered: the signal may have come within a print.
        os.write(2, b"\nstopping behind this step, which will be saved; a second signal stops at once\n")

    before = {each: signal.signal(each, note) for each in _SIGNALS}
    try:
        yield lambda: bool(received)
    except Stopped as error:
        raise Terminated(received[0] if received else signal.SIGTERM, str(error)) from None
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if received:
        raise Terminated(received[0])
