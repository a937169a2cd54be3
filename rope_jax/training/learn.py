"""Scale vectors learned by gradient descent.

The rotary embedding is differentiable in its factors, so they can be learned like weights: on a few batches at the
extended length, from any scale vector, with the model's weights frozen. LongRoPE (arXiv 2402.13753) searches the same
space with about a thousand perplexity evaluations.
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
from rope_jax.training.optimizer import apply_gradients
from rope_jax.training.state import TrainState, Variables, create_state
from rope_jax.training.step import mean_loss


@dataclasses.dataclass(frozen=True)
class LearnConfig:
    """How a scale vector is learned.

    Attributes:
        learning_rate: Adam's learning rate for the logarithm of a factor: the relative change per step.
        attention_factor: learns the attention factor too; otherwise it stays fixed.
        loss_chunk: tokens of a row projected to the vocabulary at a time.
    """

    learning_rate: float = 0.02
    attention_factor: bool = False
    loss_chunk: int = 512

    def __post_init__(self):
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(
                f"`learning_rate` is {self.learning_rate}: it must be a finite number above 0", field="learning_rate"
            )
        if self.loss_chunk < 1:
            raise InputError(f"`loss_chunk` is {self.loss_chunk}: it must be at least 1", field="loss_chunk")


@dataclasses.dataclass(frozen=True)
class Learned:
    """A learned scale vector and how it was reached.

    Attributes:
        scale: the scale vector after the last step.
        losses: float32 `[steps]`, nats per token, each before its step.
        gradient_norms: float32 `[steps]`, norms of the loss's gradient with respect to the logarithms.
    """

    scale: ScaleVector
    losses: np.ndarray
    gradient_norms: np.ndarray


def learn(
    base: Variables,
    model: LlamaConfig,
    batches: Iterable[dict],
    config: LearnConfig | None = None,
    mesh: Mesh | None = None,
) -> Learned:
    """Lowers the loss of a frozen model by gradient descent on its scale vector, one step per batch.

    Factors are learned as logarithms: they stay positive, and a step is relative, the same for a factor of 1 and of 32.

    Args:
        base: parameters, which stay unchanged, and the scale vector to start from, `[D/2]` or `[layers, D/2]`.
        model: model config.
        batches: dicts of int32 `[B, T]` `tokens`, `segment_ids` and `positions`, T the extended context.
        config: learning rate and what is learned; None for the defaults.
        mesh: mesh that parameters and batches are sharded over; None for one device.

    Returns:
        The learned vector, shaped like the one in `base`, with losses and gradient norms.

    Raises:
        InputError: if `batches` is empty.
    """
    config = config or LearnConfig()
    state = create_state(to_logarithms(base.rope), optax.adam(config.learning_rate))
    history = []
    for rows in batches:
        state, metrics = _step(state, base.params, rows, model=model, config=config, mesh=mesh)
        history.append(metrics)
    if not history:
        raise InputError("`batches` is empty: give at least one batch to learn from", field="batches")
    losses, norms = np.array(jax.device_get(history), np.float32).T
    return Learned(from_logarithms(state.params), losses, norms)


def to_logarithms(scale: ScaleVector) -> ScaleVector:
    """The logarithm of every number of a scale vector: the parametrisation that is learned."""
    return jax.tree.map(jnp.log, scale)


def from_logarithms(logarithms: ScaleVector) -> ScaleVector:
    """The scale vector with these logarithms."""
    return jax.tree.map(jnp.exp, logarithms)


@partial(jax.jit, static_argnames=("model", "config", "mesh"))
def _step(state: TrainState, params, rows, *, model, config, mesh):
    def loss(logarithms):
        return mean_loss(Variables(params, from_logarithms(logarithms)), rows, model, config.loss_chunk, mesh)

    value, gradient = jax.value_and_grad(loss)(state.params)
    if not config.attention_factor:
        gradient = dataclasses.replace(gradient, attention_factor=jnp.zeros_like(gradient.attention_factor))
    optimizer = optax.adam(config.learning_rate)
    logarithms, opt_state = apply_gradients(optimizer, gradient, state.opt_state, state.params)
    return TrainState(state.step + 1, logarithms, opt_state), (value, optax.tree.norm(gradient))
