"""A plan of a training run: its memory, communication and FLOPs, from the program that would run."""

import dataclasses
import math
import time
from typing import Any

import jax

from rope_jax.model.llama import abstract_params
from rope_jax.plan.chips import EFFICIENCY, MARGIN, USABLE, Chip
from rope_jax.plan.collectives import Collective, collectives
from rope_jax.plan.flops import key_blocks, model_flops, product_flops
from rope_jax.plan.memory import Memory, account
from rope_jax.rope.embedding import ScaleVector
from rope_jax.training.update import Training


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of one run on one mesh.

    Attributes:
        parameters: number of parameters of the model.
        trained: number of trained parameters.
        mesh: axis name to size.
        tokens: tokens per step.
        steps: steps of the run.
        memory: memory by terms, which verdicts rest on.
        arguments: bytes of weights, optimizer state and batch on one device, in the step as compiled on this machine.
        donated: bytes of these that the results overwrite.
        temporary: bytes of everything else. A CPU forms bfloat16 products from float32 copies, so that it exceeds an
            accelerator's.
        seconds: time of tracing and compiling.
        collectives: of one step.
        model_flops: FLOPs of the model per step, over all devices.
        step_flops: FLOPs of a step's matrix products over all devices, recomputation included.
    """

    parameters: int
    trained: int
    mesh: dict[str, int]
    tokens: int
    steps: int
    memory: Memory
    arguments: int
    donated: int
    temporary: int
    seconds: float
    collectives: tuple[Collective, ...]
    model_flops: float
    step_flops: float

    def verdict(self, chip: Chip) -> str:
        """Whether the run fits the usable memory of a chip.

        'fits' if both the account times `MARGIN` and the compiled program fit; 'close' if only the account fits,
        without the margin; else 'no'.
        """
        usable, peak = USABLE * chip.memory, self.memory.peak
        if max(MARGIN * peak, self.arguments + self.temporary) <= usable:
            return "fits"
        return "close" if peak <= usable else "no"

    def hours(self, chip: Chip) -> tuple[float, float]:
        """Hours of compute at an MFU of `EFFICIENCY`, and of communication at a chip's full bandwidth.

        An MFU counts the FLOPs of the model: what recomputation costs has lowered it.
        """
        compute = self.model_flops / math.prod(self.mesh.values()) / (EFFICIENCY * chip.flops)
        sent = sum(kind.bytes for kind in self.collectives) / chip.link
        return self.steps * compute / 3600, self.steps * sent / 3600


def plan(training: Training, rope: ScaleVector) -> Plan:
    """Compiles the training step of a run, whose devices may be virtual, from abstract arrays and accounts for it."""
    model, config, mesh = training.model, training.config, training.mesh
    began = time.monotonic()
    traced = training.trace(rope)
    compiled = traced.lower().compile()
    seconds = time.monotonic() - began
    stats: Any = compiled.memory_analysis()
    tokens = config.global_batch * config.length
    return Plan(
        parameters=_size(abstract_params(model)),
        trained=_size(training.abstract_state(rope).params),
        mesh=dict(mesh.shape),
        tokens=tokens,
        steps=config.optimizer.steps,
        memory=account(training, rope),
        arguments=stats.argument_size_in_bytes,
        donated=stats.alias_size_in_bytes,
        temporary=stats.temp_size_in_bytes,
        seconds=seconds,
        collectives=collectives(compiled.as_text() or ""),
        model_flops=tokens * model_flops(model, config.length, frozen=config.lora is not None),
        step_flops=product_flops(traced.jaxpr, key_blocks(model, config.length, mesh.shape["context"])),
    )


def _size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
