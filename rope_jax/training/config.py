"""The configuration of a training run."""

from __future__ import annotations

import dataclasses

from rope_jax.errors import InputError, require
from rope_jax.model.lora import LoraConfig
from rope_jax.training.learn import LearnConfig
from rope_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        optimizer: optimizer of the weights; its `steps` is the length of the run.
        length: tokens per sequence, T.
        global_batch: sequences per update over all devices and microbatches.
        accumulation: microbatches per update, A.
        loss_chunk: tokens of a row projected to the vocabulary at a time.
        checkpoint_every: updates between checkpoints.
        keep: number of newest checkpoints to keep.
        keep_best: number of checkpoints of lowest loss to keep as well.
        lora: trains a low-rank update instead of all weights; None trains all weights.
        learn: trains the scale vector together with the weights; None keeps it fixed.
        offload_optimizer: keeps the moments of the optimizer state in host memory between updates.
        check_finite: checks loss and gradients of every step, and names the first part that is not finite.
    """

    optimizer: OptimizerConfig
    length: int
    global_batch: int = 64
    accumulation: int = 1
    loss_chunk: int = 512
    checkpoint_every: int = 100
    keep: int = 2
    keep_best: int = 0
    lora: LoraConfig | None = None
    learn: LearnConfig | None = None
    offload_optimizer: bool = False
    check_finite: bool = False

    def __post_init__(self):
        for field in ("length", "global_batch", "accumulation", "loss_chunk", "checkpoint_every", "keep"):
            require(self, field, getattr(self, field) >= 1, "it must be at least 1")
        require(self, "keep_best", self.keep_best >= 0, "it must be at least 0")
        if self.global_batch % self.accumulation:
            raise InputError(
                f"`global_batch` is {self.global_batch}, which `accumulation` = {self.accumulation} does not divide: "
                "choose a divisor",
                field="accumulation",
            )

    @property
    def rows(self) -> int:
        """Sequences per microbatch, B."""
        return self.global_batch // self.accumulation
