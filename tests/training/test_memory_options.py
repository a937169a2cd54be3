"""Optimizer state in less memory: in bfloat16, and in the host's."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_jax.errors import InputError
from rope_jax.sharding import make_mesh
from rope_jax.training.checkpoints import Checkpoints, abstract_state
from rope_jax.training.state import OptimizerConfig, check_host_memory
from rope_jax.training.trained import state_layout
from tests.training.test_loop import CONFIG, ROPE, RUN, identical, initial, run

SMALL = dataclasses.replace(RUN, optimizer=dataclasses.replace(RUN.optimizer, mu_dtype="bfloat16"))
SETTINGS = {"float32": RUN, "bfloat16": SMALL}
HOST = dataclasses.replace(RUN, offload_optimizer=True)


def saved(folder, settings, mesh):
    shape, layout = state_layout(CONFIG, settings, mesh, ROPE)
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(abstract_state(shape, layout))[0]


@pytest.mark.slow
def test_bfloat16_first_moment_follows_float32(tmp_path):
    """How far six large steps of Adam lead apart, against how far they lead."""
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    start = jax.device_get(initial(mesh)())
    ends = {name: jax.device_get(run(tmp_path / name, settings=settings)) for name, settings in SETTINGS.items()}

    def distance(a, b):
        return math.sqrt(sum(np.sum((x - y) ** 2) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))))

    # Each step rounds the first moment by 2^-9 of itself, and 1 / (1 - b1) = 10 such errors add up at worst.
    assert 0 < distance(ends["float32"], ends["bfloat16"]) < 10 * 2**-9 * distance(ends["float32"], start)
    adam = saved(tmp_path / "bfloat16", SMALL, mesh).opt_state[-1][0]
    assert {leaf.dtype for leaf in jax.tree.leaves(adam.mu)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(adam.nu)} == {jnp.dtype(jnp.float32)}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [SMALL, HOST], ids=["bfloat16", "host"])
def test_resume_is_bitwise_the_same(tmp_path, settings):
    mesh = make_mesh(2, 2, 2)
    whole = run(tmp_path / "whole", mesh, settings=settings)

    def stop(step, _):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", mesh, settings=settings, on_step=stop)
    assert identical(whole, run(tmp_path / "parts", mesh, settings=settings))


def test_host_memory_changes_no_bit(tmp_path):
    mesh = make_mesh(2, 2, 2)
    assert identical(run(tmp_path / "device", mesh), run(tmp_path / "host", mesh, settings=HOST))
    state = saved(tmp_path / "host", HOST, mesh)
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim > 1}
    assert kinds == {"pinned_host"}
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.params)} == {"device"}


def test_messages():
    check_host_memory(make_mesh(1, 8, 1), "config.train.offload_optimizer")

    class Device:
        device_kind = "Abacus"

        def addressable_memories(self):
            return []

    class Mesh:
        devices = np.array([Device()])

    with pytest.raises(InputError, match=r"offload_optimizer needs the memory 'pinned_host', and a Abacus has"):
        check_host_memory(Mesh(), "config.train.offload_optimizer")
    with pytest.raises(InputError, match=r"mu_dtype is 'int8'"):
        OptimizerConfig(mu_dtype="int8")
