"""Optimizer state in less memory: in bfloat16, and in the host's."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_jax.errors import InputError
from rope_jax.training.checkpoints import Checkpoints
from rope_jax.training.update import Training, check_host_memory
from tests.training.helpers import CONFIG, ONE, ROPE, RUN, fit, identical, initial, mesh_of

SMALL = dataclasses.replace(RUN, optimizer=dataclasses.replace(RUN.optimizer, mu_dtype="bfloat16"))
HOST = dataclasses.replace(RUN, offload_optimizer=True)


def saved(folder, config, mesh):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(Training(CONFIG, config, mesh).abstract_state(ROPE))[0]


@pytest.mark.slow
def test_bfloat16_first_moment_follows_float32(tmp_path):
    """How far six large steps of Adam lead apart, against how far they lead."""
    start = jax.device_get(initial())
    runs = {"float32": RUN, "bfloat16": SMALL}
    ends = {name: jax.device_get(fit(tmp_path / name, config).model.params) for name, config in runs.items()}

    def distance(a, b):
        return math.sqrt(sum(np.sum((x - y) ** 2) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))))

    # Each step rounds the first moment by 2^-9 of itself, and 1 / (1 - b1) = 10 such errors add up at worst.
    assert 0 < distance(ends["float32"], ends["bfloat16"]) < 10 * 2**-9 * distance(ends["float32"], start)
    adam = saved(tmp_path / "bfloat16", SMALL, ONE).opt_state[-1][0]
    assert {leaf.dtype for leaf in jax.tree.leaves(adam.mu)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(adam.nu)} == {jnp.dtype(jnp.float32)}


@pytest.mark.slow
@pytest.mark.parametrize("config", [SMALL, HOST], ids=["bfloat16", "host"])
def test_resume_is_bitwise_the_same(tmp_path, config):
    mesh = mesh_of(2, 2, 2)
    whole = fit(tmp_path / "whole", config, mesh)
    fit(tmp_path / "parts", config, mesh, stop_at=5)
    resumed = fit(tmp_path / "parts", config, mesh)
    assert resumed.start == 4 and identical(whole.model, resumed.model)


@pytest.mark.slow
def test_host_memory_changes_no_bit(tmp_path):
    mesh = mesh_of(2, 2, 2)
    device, host = (fit(tmp_path / name, config, mesh) for name, config in (("device", RUN), ("host", HOST)))
    assert identical(device.model, host.model)
    state = saved(tmp_path / "host", HOST, mesh)
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim > 1}
    assert kinds == {"pinned_host"}
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.params)} == {"device"}


def test_devices_without_host_memory_are_refused():
    check_host_memory(mesh_of(1, 8, 1), "offload_optimizer")

    class Device:
        device_kind = "Abacus"

        def addressable_memories(self):
            return []

    class Mesh:
        devices = np.array([Device()])

    with pytest.raises(InputError, match="needs the memory 'pinned_host', and a Abacus has") as error:
        check_host_memory(Mesh(), "offload_optimizer")
    assert error.value.field == "offload_optimizer"
