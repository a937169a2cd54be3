"""The configuration of a training run, and its optimizer."""

import dataclasses
import math
from functools import partial

import optax

from rope_jax.data.mixed import Mix
from rope_jax.data.positions import Skips
from rope_jax.errors import InputError, require
from rope_jax.model.lora import LoraConfig
from rope_jax.training.learn import LearnConfig


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101). The defaults are the paper's recipe for fine-tuning.

    Attributes:
        learning_rate: peak learning rate.
        schedule: 'constant' or 'cosine' (to zero at `steps`).
        warmup_steps: steps of linear warm-up, 0 for none.
        steps: updates of the run.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay.
        clip_norm: global gradient norm to clip at, 0 for none.
        mu_dtype: dtype of the first moment, 'float32' or 'bfloat16'. The second stays float32: a step changes it by
            about `1 - b2`, a thousandth, which bfloat16 with its steps of 1/256 would round away.
    """

    learning_rate: float = 2e-5
    schedule: str = "constant"
    warmup_steps: int = 0
    steps: int = 1000
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    mu_dtype: str = "float32"

    def __post_init__(self):
        check = partial(require, self)
        check("schedule", self.schedule in ("constant", "cosine"), "use 'constant' or 'cosine'")
        check("learning_rate", 0 < self.learning_rate < math.inf, "it must be a finite number above 0")
        check("mu_dtype", self.mu_dtype in ("float32", "bfloat16"), "use 'float32' or 'bfloat16'")
        check("steps", self.steps >= 1, "it must be at least 1")
        check("warmup_steps", 0 <= self.warmup_steps <= self.steps, f"it must lie in 0 .. `steps` = {self.steps}")
        for field in ("b1", "b2"):
            check(field, 0 <= getattr(self, field) < 1, "it must lie in 0 .. 1, below 1")
        for field in ("eps", "weight_decay", "clip_norm"):
            value = getattr(self, field)
            check(field, math.isfinite(value) and value >= 0, "it must be a finite number, at least 0")


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
        offload_optimizer: keeps the optimizer state in host memory between updates.
        skips: positions of training rows skip, so that short rows train a longer context; None counts them.
        mix: share of microbatches of short documents, under the original scale vector; None for none.
        recall: share of rows that are synthetic recall, below 1; the tokenizer has its symbols.
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
    skips: Skips | None = None
    mix: Mix | None = None
    recall: float = 0.0
    check_finite: bool = False

    def __post_init__(self):
        for field in ("length", "global_batch", "accumulation", "loss_chunk", "checkpoint_every", "keep"):
            require(self, field, getattr(self, field) >= 1, "it must be at least 1")
        if self.skips and self.skips.reach <= self.length:
            raise InputError(
                f"`length` is {self.length}, and positions that skip reach {self.skips.reach}: train on shorter rows"
            )
        microbatches = self.optimizer.steps * self.accumulation
        if self.mix and int(self.mix.share * microbatches) == 0:
            raise InputError(
                f"`mix` is {self.mix.share:g}, and the run has {microbatches} microbatches, none of which would hold "
                "short documents: raise it, or leave it at 0"
            )
        require(self, "recall", 0 <= self.recall < 1, "it must lie in 0 .. 1, below 1")
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


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW with the configured schedule and gradient clipping."""
    schedule = optax.constant_schedule(config.learning_rate)
    if config.schedule == "cosine":
        after = config.steps - config.warmup_steps
        schedule = optax.cosine_decay_schedule(config.learning_rate, max(after, 1))
    if config.warmup_steps:
        rise = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
        schedule = optax.join_schedules([rise, schedule], [config.warmup_steps])
    fields = ("b1", "b2", "eps", "weight_decay", "mu_dtype")
    adamw = optax.adamw(schedule, **{field: getattr(config, field) for field in fields})
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw
