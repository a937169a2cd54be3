"""Scale vectors by gradient: what the model itself says about its factors.

The rotary embedding is differentiable in its factors, so they can be learned like any weight: on a few batches at the
extended length, from any starting vector, with the model's weights frozen. LongRoPE (arXiv 2402.13753) searches the
same space with some thousand perplexity evaluations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from rope_jax.errors import InputError
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector
from rope_jax.training.step import mean_loss


@dataclasses.dataclass(frozen=True)
class LearnConfig:
    """How a scale vector is learned.

    Attributes:
        learning_rate: of Adam, on the logarithm of a factor: the relative change of a factor per step.
        attention_factor: whether the attention factor is learned too; otherwise it stays as it starts.
        loss_chunk: tokens of a row projected to the vocabulary at a time.
    """

    learning_rate: float = 0.02
    attention_factor: bool = False
    loss_chunk: int = 512

    def __post_init__(self):
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(f"learn.learning_rate is {self.learning_rate}: it must be a finite number above 0")
        if self.loss_chunk < 1:
            raise InputError(f"learn.loss_chunk is {self.loss_chunk}: it must be at least 1")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Learned:
    """The outcome of learning.

    Attributes:
        scale: the scale vector after the last step.
        losses: float32 `[steps]`, nats per token, each before its step.
        gradient_norms: float32 `[steps]`, of the loss with respect to the logarithms.
    """

    scale: ScaleVector
    losses: np.ndarray
    gradient_norms: np.ndarray


def learn(
    params: dict,
    config: LlamaConfig,
    start: ScaleVector,
    batches: Iterable[dict],
    learning: LearnConfig | None = None,
    mesh: Mesh | None = None,
) -> Learned:
    """Lowers a frozen model's loss by gradient steps on its scale vector, one per batch.

    Factors are learned as logarithms (see `to_logarithms`), so that they stay positive and a step is relative, alike
    for a factor of 1 and one of 32.

    Args:
        params: parameters of `Llama`; not changed.
        config: its config.
        start: any scale vector, `[D/2]` or `[layers, D/2]`; the result has its shape.
        batches: dicts of int32 `[B, T]` `tokens`, `segment_ids` and `positions`, T the extended context.
        learning: see `LearnConfig`.
        mesh: devices that parameters and batches are spread over; None for one.

    Returns:
        The learned vector and how the loss fell.

    Raises:
        InputError: if there is no batch.
    """
    learning = learning or LearnConfig()
    logarithms = to_logarithms(start)
    state = optax.adam(learning.learning_rate).init(logarithms)
    history = []
    for batch in batches:
        logarithms, state, metrics = _step(logarithms, state, params, batch, config, learning, mesh)
        history.append(metrics)
    if not history:
        raise InputError("learn: there is no batch to learn from; give at least one")
    losses, norms = np.array(jax.device_get(history), np.float32).T
    return Learned(from_logarithms(logarithms), losses, norms)


def to_logarithms(scale: ScaleVector) -> ScaleVector:
    """The parametrisation that is learned: a scale vector with the logarithm of every number.

    Args:
        scale: a scale vector.

    Returns:
        Logarithms, in the structure of a scale vector, which they are not.
    """
    return jax.tree.map(jnp.log, scale)


def from_logarithms(logarithms: ScaleVector) -> ScaleVector:
    """The inverse of `to_logarithms`.

    Args:
        logarithms: from `to_logarithms`.

    Returns:
        The scale vector.
    """
    return jax.tree.map(jnp.exp, logarithms)


def joint_optimizer(weights: optax.GradientTransformation, learning: LearnConfig) -> optax.GradientTransformation:
    """The optimizer of weights and scale vector trained together.

    Args:
        weights: of the weights.
        learning: see `LearnConfig`; the logarithms get Adam, without decay.

    Returns:
        The optax transformation, for `{"weights": ..., "rope": logarithms}`.
    """
    still = optax.adam(learning.learning_rate) if learning.attention_factor else optax.set_to_zero()
    parts = {"weights": weights, "factors": optax.adam(learning.learning_rate), "attention": still}

    def labels(trained):
        rope = ScaleVector("factors", "attention")
        return {"weights": jax.tree.map(lambda _: "weights", trained["weights"]), "rope": rope}

    return optax.partition(parts, labels)


@partial(jax.jit, static_argnames=("config", "learning", "mesh"))
def _step(logarithms, state, params, batch, config, learning, mesh):
    def loss(logarithms):
        return mean_loss(params, batch, from_logarithms(logarithms), config, learning.loss_chunk, mesh)

    value, gradient = jax.value_and_grad(loss)(logarithms)
    if not learning.attention_factor:
        gradient = dataclasses.replace(gradient, attention_factor=jnp.zeros_like(gradient.attention_factor))
    updates, state = optax.adam(learning.learning_rate).update(gradient, state)
    return optax.apply_updates(logarithms, updates), state, (value, optax.tree.norm(gradient))
