"""The command `extend --plan`: memory, communication and hours of fine-tuning, without an accelerator."""

import dataclasses
import math
from collections.abc import Mapping

import jax

from rope_jax.commands.cards import described
from rope_jax.commands.reporter import Reporter
from rope_jax.model.backends import Device, described_backend
from rope_jax.model.config import LlamaConfig
from rope_jax.plan.describe import describe
from rope_jax.plan.plan import Plan, plan
from rope_jax.rope.embedding import ScaleVector
from rope_jax.sharding import make_mesh
from rope_jax.training.config import TrainConfig
from rope_jax.training.update import Training

# The device that a plan is for, as far as attention depends on it.
PLANNED = Device("gpu", "GPUs of NVIDIA", 9.0)


def plan_training(
    name: str, model: LlamaConfig, config: TrainConfig, mesh: Mapping[str, int], *, own: ScaleVector, reporter: Reporter
) -> Plan:
    """Plans a training on a mesh, axis to size, and reports the plan.

    `model` is the config as an accelerator computes it, `own` a scale vector, for its shape.
    """
    count = math.prod(mesh.values())
    attention = described_backend(model, PLANNED, ring=mesh.get("context", 1) > 1)
    # Kernels compile on their own platform only.
    model = dataclasses.replace(model, attention="cpu")
    training = Training(model, config, make_mesh(**mesh, devices=jax.devices()[:count]))
    training.check()
    reporter.say(
        f"{name}: {described(config)}; compiling the training step, attention by 'cpu', for {count} virtual devices\n"
        f"attention    on {PLANNED.kind} by {attention}"
    )
    result = plan(training, own)
    reporter.say(describe(result, model.remat))
    return result


def virtual_devices(count: int) -> None:
    """Makes JAX see virtual CPU devices only. Call it before JAX looks for devices."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
