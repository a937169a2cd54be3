"""Commands that tests start. None outlives its test, and their pipes are closed."""

import contextlib
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PATIENCE = 300  # seconds

# Processes are forked from one that has imported the commands and computed nothing, so that they start at once.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["rope_jax.cli.extend", "rope_jax.cli.evaluate", "tests.training.topology"])


@contextlib.contextmanager
def python(*arguments, **environment) -> Iterator[subprocess.Popen[str]]:
    """A Python process in the repository's folder, to read from and to signal; killed where the block is left.

    Args:
        *arguments: of the interpreter.
        **environment: variables to add.
    """
    command = [sys.executable, *map(str, arguments)]
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPOSITORY, env=variables, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def forked(target, *arguments):
    """A process that calls `target`, a function of a module that computes nothing when it is imported."""
    process = _FORKS.Process(target=target, args=arguments)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()
        process.close()


def ended(*processes: subprocess.Popen[str], status: int = 0) -> list[tuple[str, str]]:
    """Waits for processes that must end with `status`: what each wrote, standard output and error."""
    written = [process.communicate(timeout=PATIENCE) for process in processes]
    assert [process.returncode for process in processes] == [status] * len(processes), written
    return written


def output(*arguments, **environment) -> str:
    """Standard output of a Python process that must succeed."""
    with python(*arguments, **environment) as process:
        return ended(process)[0][0]


def together(count: int, *arguments, **environment) -> list[str]:
    """Standard outputs of several processes that join one another.

    Args:
        count: number of processes.
        *arguments: of the interpreter. A port of this machine and the number of the process follow.
        **environment: variables to add.
    """
    port = free_port()
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(python(*arguments, port, i, **environment)) for i in range(count)]
        return [out for out, _ in ended(*processes)]


def free_port(lowest: int = 0) -> int:
    """A free port; not below `lowest`."""
    for port in range(lowest, 65536) if lowest else (0,):
        with socket.socket() as probe:
            try:
                probe.bind(("localhost", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise AssertionError("no free port")
