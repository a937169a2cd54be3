"""The processes of a run: how they find one another and what they send. A single process sends nothing."""

import dataclasses
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

# Processes that end wait for one another; one that failed alone must not wait long.
_SHUTDOWN_SECONDS = 60


def is_first() -> bool:
    """Whether this is process 0, which writes shared files."""
    return jax.process_index() == 0


def gather(value: Any) -> list:
    """Gathers a JSON-serialisable value from each process, in their order. A collective: every process must call it."""
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
    """Runs an action, which must not communicate, in every process and returns this process's result.

    If it fails in one, all of them raise, so that none waits forever: this process's exception unchanged, another's as
    an InputError with its message.
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
    """Runs an action in process 0, and gives its JSON-serialisable result, or its failure, to every process."""
    return gather(together(lambda: action() if is_first() else None))[0]


def ask_all(question: Callable[[], bool], mesh: Mesh) -> Callable[[], bool]:
    """Starts a vote on whether the question holds in any process; returns a function that waits for the answer.

    It does not block: devices count after their work. A single process asks only once the answer is read.
    """
    if jax.process_count() == 1:
        return question
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    vote = np.full(1, question())
    votes = jax.make_array_from_callback((mesh.size,), sharding, lambda _: vote)
    answer = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))(votes)
    return lambda: bool(answer)


@dataclasses.dataclass(frozen=True)
class Processes:
    """How the processes of a run find one another: by the address of process 0, or through the cluster.

    Attributes:
        coordinator: HOST:PORT of process 0; empty for none.
        processes: number of processes; 0 for none.
        process: number of this process, from 0; -1 for none.
        auto: ask Slurm, Open MPI, Kubernetes or Cloud TPU.
        local_devices: devices of this process; empty for all.
        timeout: seconds to wait for the other processes.
    """

    coordinator: str = ""
    processes: int = 0
    process: int = -1
    auto: bool = False
    local_devices: tuple[int, ...] = ()
    timeout: int = 300

    def __post_init__(self):
        absent = {"coordinator": "", "processes": 0, "process": -1}
        missing = [name for name, value in absent.items() if getattr(self, name) == value]
        named = [name for name in absent if name not in missing]
        if self.auto and named:
            raise InputError(f"`{named[0]}` and `auto` are both set: use one of them")
        if not self.auto and not named and self.local_devices:
            raise InputError("`local_devices` is set without `coordinator` or `auto`: set one")
        if not named:
            return
        if missing:
            raise InputError(
                f"`{missing[0]}` is missing: several processes need `coordinator`, `processes` and `process`, or "
                "`auto`=True under Slurm, Open MPI, Kubernetes or on Cloud TPU"
            )
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise InputError(
                f"`coordinator` is {self.coordinator!r}: use HOST:PORT, the address of process 0 and a free port there"
            )
        if not 0 <= self.process < self.processes:
            raise InputError(
                f"`process` is {self.process}: use 0 to {self.processes - 1}, another number in every process"
            )

    def connect(self, several: bool = True) -> None:
        """Joins the other processes, if there are any; an InputError if the command cannot run in `several`.

        Call it before JAX looks for devices.
        """
        if not (self.coordinator or self.auto):
            return
        field = "auto" if self.auto else "coordinator"
        if not several:
            raise InputError(f"`{field}` is set, but this command runs in one process: start it on one host")
        try:
            jax.distributed.initialize(
                # What is None is detected.
                coordinator_address=self.coordinator or None,
                num_processes=None if self.auto else self.processes,
                process_id=None if self.auto else self.process,
                cluster_detection_method=None if self.auto else "deactivate",
                local_device_ids=list(self.local_devices) or None,
                initialization_timeout=self.timeout,
                shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
            )
        except ValueError as error:  # JAX's detection leaves empty what it does not find
            raise InputError(
                f"`auto` is set, but no Slurm, Open MPI, Kubernetes or Cloud TPU names other processes ({error}): set "
                "`coordinator`, `processes` and `process`"
            ) from error
        except RuntimeError as error:
            raise InputError(
                f"the processes did not find one another within `timeout` = {self.timeout} s "
                f"({str(error).splitlines()[0]}): check that all of them were started with the same coordinator, and "
                "that its port is free and open",
                field="timeout",
            ) from error
