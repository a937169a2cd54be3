"""A terminal: exit status, bars and signals; what a user can fix is one message without a traceback."""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from absl import logging as absl_logging
from ml_collections import ConfigDict
from tqdm import tqdm

from rope_jax.cli import build, names
from rope_jax.cli.ending import stop
from rope_jax.commands.reporter import ByteProgress, StepProgress, T
from rope_jax.errors import InputError
from rope_jax.files import DISK_FULL
from rope_jax.interop.verify import VerificationError
from rope_jax.multihost import is_first
from rope_jax.progress import bar, note
from rope_jax.training.loop import NonFiniteLoss, Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds from the first signal to the next batch at most. Files are whole at every moment, so that ending is safe.
_GRACE = 30.0


class Terminated(BaseException):
    """The command was asked to end by signal `number`, to this process or to another of the run.

    The message says what was saved; it is empty if nothing had to be.
    """

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number = number


class Terminal:
    """The `Reporter` of a command line. Of several processes, the first prints."""

    def say(self, text: str) -> None:
        if is_first():
            print(text, flush=True)

    def bar(self, description: str) -> Callable[[Iterable[T]], Iterable[T]]:
        return lambda items: self._bar(description, items, leave=False, delay=1)

    @contextlib.contextmanager
    def byte_bar(self, description: str) -> Iterator[ByteProgress]:
        with self._bar(description, unit="B", unit_scale=True, leave=False, delay=1) as shown:

            def update(done: int, total: int) -> None:
                shown.total = total
                shown.update(done - shown.n)

            yield update

    @contextlib.contextmanager
    def training_bar(self, description: str, *, steps: int, start: int, tokens_per_step: int) -> Iterator[StepProgress]:
        with self._bar(description, total=steps, initial=start, unit="step") as shown:
            if start < steps:
                note(f"  {description}: compiling the training step, minutes for a large model")
            began, first = time.monotonic(), 0

            def update(step: int, metrics: dict) -> None:
                nonlocal began, first
                seconds = time.monotonic() - began
                if not first:
                    note(f"  {description}: the first step took {seconds:.1f} s")
                    # Compilation says nothing about the steps to come.
                    began, first = time.monotonic(), step
                speed = (step - first) * tokens_per_step / seconds
                shown.set_postfix(loss=f"{metrics['loss']:.4f}", tokens_per_s=f"{speed:,.0f}", refresh=False)
                shown.update(step - shown.n)

            yield update

    @contextlib.contextmanager
    def deferred_stop(self) -> Iterator[Callable[[], bool]]:
        """Defers SIGTERM and Ctrl-C while training runs; a second signal ends the process at once.

        Raises:
            Terminated: once training has stopped, or if a signal came after its last step.
        """
        if threading.current_thread() is not threading.main_thread():
            # Only the main thread may handle signals.
            yield lambda: False
            return
        received: list[int] = []
        before = {each: signal.signal(each, lambda number, frame: received.append(number)) for each in _SIGNALS}
        try:
            with answered_signals("stopping after this step, which will be saved"):
                yield lambda: bool(received)
        except Stopped as error:
            raise Terminated(received[0] if received else signal.SIGTERM, str(error)) from None
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
        if received:
            raise Terminated(received[0])

    @staticmethod
    def _bar(description: str, items: Iterable | None = None, **options) -> tqdm:
        return bar(f"  {description}", items, disable=not is_first(), **options)


def guarded(command: Callable[[], object], config: ConfigDict, folder: Path, *, several: bool, debug: bool) -> None:
    """Joins the other processes and runs a command; what ends it is a line and a status.

    Exit status: 2 for unusable input; 1 for a full disk, a loss that is not finite or an export that computes something
    else; 130 for Ctrl-C, 143 for SIGTERM. Finished stages stay, and the same command resumes.

    Args:
        folder: the run's folder, to resume from.
        several: whether the command can run in several processes (`config.distributed`).
        debug: whether a traceback precedes the line.
    """
    # Libraries log every checkpoint as information; gguf warns of templates that no language model is given.
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger("gguf").setLevel(logging.ERROR)
    try:
        with names.config_names():
            build.processes(config).connect(several)
        # JAX handles the signal itself once it has connected.
        signal.signal(signal.SIGTERM, _end)
        with answered_signals(f"stopping at the next batch, in {_GRACE:g} s at most", _GRACE):
            command()
    except InputError as error:
        stop(str(error), 2, debug)
    except (NonFiniteLoss, VerificationError) as error:
        stop(str(error), 1, debug)
    except KeyboardInterrupt:
        _interrupted("stopped", folder, signal.SIGINT)
    except Terminated as error:
        _interrupted(str(error) or "stopped", folder, error.number)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        stop(f"the disk is full ({error}): free some space; the same command resumes from {folder}", 1, debug)


@contextlib.contextmanager
def answered_signals(promise: str, grace: float | None = None) -> Iterator[None]:
    """Answers SIGTERM and Ctrl-C at once by a line, also while the main thread is inside a long computation.

    Python runs signal handlers in the main thread, which a computation holds for as long as a batch takes. Another
    thread hears of the signal before. It ends the process at a second signal, or `grace` seconds after the first.
    """
    hears, tells = socket.socketpair()
    tells.setblocking(False)
    thread = threading.Thread(target=_answer, args=(hears, promise, grace), daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        tells.close()
        thread.join()
        hears.close()


def _answer(hears: socket.socket, promise: str, grace: float | None) -> None:
    numbers = iter(lambda: hears.recv(1), b"")  # ends with the context
    first = next((number[0] for number in numbers if number[0] in _SIGNALS), None)
    if first is None:
        return
    # Unbuffered: the signal may have come within a print.
    os.write(2, f"\n{promise}; a second signal ends the process at once\n".encode())
    hears.settimeout(grace)
    try:
        if not any(number[0] in _SIGNALS for number in numbers):
            return
    except TimeoutError:
        os.write(2, b"ended within a batch; the same command resumes\n")
    os._exit(128 + first)


def _end(number, frame):
    """SIGTERM unwinds as Ctrl-C does, so that nothing half-written stays."""
    raise Terminated(number)


def _interrupted(what: str, folder: Path, number: int) -> None:
    print(f"\n{what}; the same command resumes from {folder}", file=sys.stderr)
    # As shells count: 130 for Ctrl-C, 143 for SIGTERM.
    sys.exit(128 + number)
