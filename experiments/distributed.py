"""Several processes as one run: who coordinates them, and which of them this is."""

from __future__ import annotations

import jax
from ml_collections import ConfigDict

from rope_jax.errors import InputError

# Processes that end wait for one another; one that has failed alone must not wait long for those it left.
_SHUTDOWN_SECONDS = 60


def start(fields: ConfigDict, several: bool) -> None:
    """Joins the other processes of the run, if there are any; called before anything asks JAX for its devices.

    Args:
        fields: `config.distributed`.
        several: whether the command can run in several processes.

    Raises:
        InputError: naming the field that is missing or does not fit, or that the others were not found.
    """
    named = {"coordinator": fields.coordinator, "processes": fields.processes or "", "process": fields.process}
    given = {name: value not in ("", -1) for name, value in named.items()}
    if not any(given.values()) and not fields.auto:
        if fields.local_devices:
            raise InputError("config.distributed.local_devices is set, but neither .coordinator nor .auto is")
        return
    if not several:
        raise InputError("config.distributed is set, but this command runs in one process: start it on one host")
    if fields.auto and any(given.values()):
        names = ", ".join(f"config.distributed.{name}" for name, is_given in given.items() if is_given)
        raise InputError(f"{names} and config.distributed.auto are both set: name the processes, or have them found")
    address = {}
    if not fields.auto:
        for name, is_given in given.items():
            if not is_given:
                raise InputError(
                    f"config.distributed.{name} is missing: several processes need .coordinator, .processes and "
                    ".process, or .auto=True under Slurm, Open MPI, Kubernetes or on Cloud TPU"
                )
        host, _, port = fields.coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise InputError(
                f"config.distributed.coordinator is {fields.coordinator!r}: give HOST:PORT, the address of process 0 "
                "and a free port there"
            )
        if not 0 <= fields.process < fields.processes:
            raise InputError(
                f"config.distributed.process is {fields.process}: it must be from 0 to {fields.processes - 1}, another "
                "in every process"
            )
        address = {
            "coordinator_address": fields.coordinator,
            "num_processes": fields.processes,
            "process_id": fields.process,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(
            **address,
            local_device_ids=list(fields.local_devices) or None,
            initialization_timeout=fields.timeout,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        # JAX's detection leaves empty what it does not find.
        raise InputError(
            f"config.distributed.auto is set, but no Slurm, Open MPI, Kubernetes or Cloud TPU tells of other processes "
            f"({error}): set config.distributed.coordinator, .processes and .process"
        ) from error
    except RuntimeError as error:
        raise InputError(
            f"the processes did not find one another within config.distributed.timeout = {fields.timeout} s "
            f"({str(error).splitlines()[0]}): check that all of them were started, with the same coordinator, and that "
            "its port is free and open"
        ) from error
