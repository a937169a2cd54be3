"""The optimizer: AdamW and its learning rate schedule."""

from __future__ import annotations

import dataclasses
import math

import jax
import optax

from rope_jax.errors import InputError


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
        if self.schedule not in ("constant", "cosine"):
            raise InputError(f"`schedule` is {self.schedule!r}: use 'constant' or 'cosine'", field="schedule")
        if not self.learning_rate > 0:
            raise InputError(f"`learning_rate` is {self.learning_rate}: it must be above 0", field="learning_rate")
        if self.mu_dtype not in ("float32", "bfloat16"):
            raise InputError(f"`mu_dtype` is {self.mu_dtype!r}: use 'float32' or 'bfloat16'", field="mu_dtype")
        if self.steps < 1:
            raise InputError(f"`steps` is {self.steps}: it must be at least 1", field="steps")
        if not 0 <= self.warmup_steps <= self.steps:
            raise InputError(
                f"`warmup_steps` is {self.warmup_steps}: it must lie in 0 .. `steps` = {self.steps}",
                field="warmup_steps",
            )
        for field in ("b1", "b2"):
            if not 0 <= getattr(self, field) < 1:
                raise InputError(f"`{field}` is {getattr(self, field)}: it must lie in 0 .. 1, below 1", field=field)
        for field in ("weight_decay", "clip_norm"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"`{field}` is {value}: it must be a finite number, at least 0", field=field)


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


def apply_gradients(optimizer: optax.GradientTransformation, grads, opt_state, params):
    """One update.

    Args:
        optimizer: the optimizer.
        grads: gradients, shaped like the parameters.
        opt_state: its state.
        params: parameters.

    Returns:
        The next parameters and optimizer state.
    """
    # Optax raises its decays, Python floats, to an integer count.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state
