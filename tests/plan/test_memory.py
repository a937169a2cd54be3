"""The account of memory, against what the compiler and JAX's own differentiation say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_jax.model.config import LlamaConfig
from rope_jax.model.lora import LoraConfig
from rope_jax.plan.memory import account, measured
from rope_jax.plan.plan import plan
from rope_jax.rope.embedding import ScaleVector
from rope_jax.sharding import make_mesh
from rope_jax.training.config import OptimizerConfig, TrainConfig
from rope_jax.training.learn import LearnConfig
from rope_jax.training.update import Training

CONFIG = LlamaConfig(64, 32, 64, 3, 4, 2, 8, remat="full", attention_chunk=16)
RUN = TrainConfig(OptimizerConfig(steps=10), length=32, global_batch=16, accumulation=2, loss_chunk=8)
ROPE = ScaleVector.create(np.ones(4))
SMALL = dataclasses.replace(RUN, optimizer=OptimizerConfig(mu_dtype="bfloat16"))
JOINT = dataclasses.replace(RUN, learn=LearnConfig())
LORA = dataclasses.replace(JOINT, lora=LoraConfig(2, 4.0, ("q", "v")))


def check_arguments(result):
    assert sum(result.memory.arguments.values()) == result.arguments
    # The state is donated: the results take no memory of their own, but for the metrics.
    state = result.memory.arguments["weights"] + result.memory.arguments["optimizer state"]
    assert state <= result.donated <= state + 64


@pytest.mark.parametrize(
    ("run", "sizes"),
    [(SMALL, (2, 2, 2)), (LORA, (2, 4, 1)), pytest.param(JOINT, (4, 1, 2), marks=pytest.mark.slow)],
    ids=["bfloat16", "lora and vector", "all and vector"],
)
def test_arguments_are_the_compilers_to_the_byte(run, sizes):
    check_arguments(plan(Training(CONFIG, run, make_mesh(*sizes)), ROPE))


def test_kept_activations_by_policy():
    """On one device of eight: 4 rows of 32 tokens in two parts, half of the heads and of the feed-forward width."""
    mesh = make_mesh(1, 4, 2)
    runs = {
        policy: Training(dataclasses.replace(CONFIG, remat=policy), RUN, mesh)
        for policy in ("none", "dots", "attention", "full", "offload")
    }
    kept = {policy: account(run, ROPE).backward["kept activations"] for policy, run in runs.items()}
    tokens, layers, width = 2 * 32, 3, 4
    assert kept["full"] == layers * tokens * 32 * width
    assert kept["attention"] == layers * tokens * (32 + 2 * 8 + 2) * width
    # q and what attention gives, with the log of a sum for each head; the block's input and what o gives, k and v, gate
    # and up.
    assert kept["dots"] == layers * tokens * (2 * (2 * 8) + 2 + 2 * 32 + 2 * 8 + 2 * 32) * width
    assert kept["none"] > kept["dots"] and kept["offload"] == 0


def test_what_is_offloaded_is_in_the_hosts_memory():
    mesh = make_mesh(1, 8, 1)
    device, host = (
        account(Training(CONFIG, dataclasses.replace(RUN, offload_optimizer=o), mesh), ROPE) for o in (False, True)
    )
    moved = device.arguments["optimizer state"] - host.arguments["optimizer state"]
    assert host.host == moved == host.update["optimizer state in transit"] > 0 == device.host
    offload = account(Training(dataclasses.replace(CONFIG, remat="offload"), RUN, mesh), ROPE)
    assert offload.host == device.backward["kept activations"]


def test_no_more_than_twice_what_is_measured_here():
    """A step's peak on the devices of this machine, whose compiler reports it: the account is of its size."""
    config = LlamaConfig(512, 256, 512, 4, 4, 4, 64, remat="full", attention_chunk=64)
    run = dataclasses.replace(RUN, length=512, global_batch=16, loss_chunk=128)
    result = plan(Training(config, run, make_mesh(1, 8, 1)), ROPE_64)
    check_arguments(result)
    # In float32 a CPU computes as an accelerator does; an estimate of working memory is no better than a factor.
    assert 0.5 < result.memory.peak / (result.arguments + result.temporary) < 2


def test_devices_that_count_are_asked():
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    class Mesh:
        local_devices = (Device({"peak_bytes_in_use": 5}), Device({"peak_bytes_in_use": 7}), Device(None))

    assert measured(Mesh()) == 7
    assert measured(make_mesh(1, 8, 1)) is None  # CPUs do not


ROPE_64 = ScaleVector.create(jnp.ones(32))


def test_devices_are_only_named():
    before = len(jax.live_arrays())
    account(Training(CONFIG, RUN, make_mesh(1, 8, 1)), ROPE)
    assert len(jax.live_arrays()) <= before + 8  # scale vectors and the like
