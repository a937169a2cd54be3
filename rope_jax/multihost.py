"""Communication between the processes of a run. A single process communicates nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rope_jax.errors import InputError

T = TypeVar("T")


def is_first() -> bool:
    """Whether this is process 0, which writes shared files."""
    return jax.process_index() == 0


def gather(value: Any) -> list:
    """Gathers a value from every process. A collective: every process must call it.

    Args:
        value: JSON-serialisable value of any size; it may differ between processes.

    Returns:
        The values in the order of processes.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    # Powers of two, so that few sizes are compiled.
    row = np.zeros(1 << int(max(sizes) - 1).bit_length(), np.uint8)
    row[: data.size] = data
    rows = multihost_utils.process_allgather(row)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]


def together(action: Callable[[], T]) -> T:
    """Runs an action in every process; if it fails in one, all of them raise, so that none waits forever.

    Args:
        action: called in every process; it must not communicate.

    Returns:
        This process's result.

    Raises:
        InputError: if it failed in another process, with that process's message. An exception of this process is
            raised unchanged.
    """
    if jax.process_count() == 1:
        return action()
    result: Any = None
    failure: Exception | None = None
    try:
        result = action()
    except Exception as error:
        failure = error
    said = gather(None if failure is None else str(failure) or type(failure).__name__)
    if failure is not None:
        raise failure
    for process, message in enumerate(said):
        if message is not None:
            raise InputError(f"process {process} failed: {message}")
    return result


def in_turn(action: Callable[[], T]) -> T:
    """`together`, but process 0 goes first, so that the others find its files."""
    if jax.process_count() == 1:
        return action()
    first: Any = together(lambda: action() if is_first() else None)
    others: Any = together(lambda: None if is_first() else action())
    return first if is_first() else others


def from_first(action: Callable[[], Any]) -> Any:
    """Runs an action in process 0 only, such as reading or writing a file, and broadcasts its result.

    Args:
        action: returns a JSON-serialisable value.

    Returns:
        The value, in every process.

    Raises:
        InputError: if it failed in process 0 and this is another process.
    """
    return gather(together(lambda: action() if is_first() else None))[0]


def ask_all(question: Callable[[], bool], mesh: Mesh) -> Callable[[], bool]:
    """Starts a vote on whether the question holds in any process, without blocking: devices count after their work.

    Args:
        question: called in every process; with a single process, only once the answer is read.
        mesh: mesh of all devices of all processes.

    Returns:
        Function that waits for the answer, which is the same in every process.
    """
    if jax.process_count() == 1:
        return question
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    vote = np.full(1, question())
    votes = jax.make_array_from_callback((mesh.size,), sharding, lambda _: vote)
    answer = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))(votes)
    return lambda: bool(answer)
