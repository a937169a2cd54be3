"""What the processes of a run tell one another. With a single process, nothing is sent."""

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
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def gather(value: Any) -> list:
    """Collects a value of every process. All must call it, and wait for the slowest.

    Args:
        value: JSON-able; of any size, and it may differ from process to process.

    Returns:
        The values, that of process 0 first.
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
    """Does what may fail in one process only, and then fails in all of them: none waits for one that is gone.

    Args:
        action: called in every process; it must not communicate itself.

    Returns:
        What it returned here.

    Raises:
        InputError: if it failed in another process, with its message. What it raises here is raised as it is.
    """
    if jax.process_count() == 1:
        return action()
    result, failure = None, None
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
    """`together`, but process 0 goes first, and the others find what it has left on disk."""
    if jax.process_count() == 1:
        return action()
    first = together(lambda: action() if is_first() else None)
    others = together(lambda: None if is_first() else action())
    return first if is_first() else others


def from_first(action: Callable[[], Any]) -> Any:
    """Does something in process 0 only, such as reading or writing a file, and tells the others what came of it.

    Args:
        action: gives a JSON-able value.

    Returns:
        The value, in every process.

    Raises:
        InputError: as `together`.
    """
    return gather(together(lambda: action() if is_first() else None))[0]


def ask_all(question: Callable[[], bool], mesh: Mesh) -> Callable[[], bool]:
    """Asks whether any process says yes, without waiting: the votes are counted by the devices, behind their work.

    Args:
        question: asked in every process; in a single process not before the answer is wanted.
        mesh: all devices of all processes.

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
