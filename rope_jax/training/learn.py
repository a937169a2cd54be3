"""Scale vectors learned by gradient descent.

The rotary embedding is differentiable in its factors, so they can be learned on a few batches at the extended length.
LongRoPE (arXiv 2402.13753) searches the same space with about a thousand perplexity evaluations.
"""

import dataclasses
import math
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from rope_jax.errors import InputError, require
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector
from rope_jax.training.finite import NonFiniteLoss, all_finite, finite
from rope_jax.training.state import TrainState, Variables, create_state
from rope_jax.training.step import summed_loss


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
        usable = math.isfinite(self.learning_rate) and self.learning_rate > 0
        require(self, "learning_rate", usable, "it must be a finite number above 0")
        require(self, "loss_chunk", self.loss_chunk >= 1, "it must be at least 1")


class Learned(NamedTuple):
    """What `learn` finds.

    Attributes:
        scale: the learned vector, shaped like the one that it started from.
        losses: float32 `[steps]`, nats per token, each before its step.
        gradients: of each loss in the logarithms of the factors and of the attention factor, learned or not: arrays
            `[steps, ...]` of the vector's shapes.
    """

    scale: ScaleVector
    losses: np.ndarray
    gradients: ScaleVector


def learn(
    base: Variables,
    model: LlamaConfig,
    batches: Iterable[dict],
    config: LearnConfig = LearnConfig(),
    mesh: Mesh | None = None,
) -> Learned:
    """Lowers the loss of a frozen model by gradient descent on its scale vector, one step per batch.

    Factors are learned as logarithms: they stay positive, and a step is relative, the same for a factor of 1 and of 32.

    Args:
        base: parameters, which stay unchanged, and the scale vector to start from, `[D/2]` or `[layers, D/2]`.
        batches: dicts of int32 `[B, T]` `tokens`, `segment_ids` and `positions`, T the extended context.
        mesh: mesh that parameters and batches are sharded over; None for one device.

    Raises:
        NonFiniteLoss: if a loss or the learned vector is not finite.
    """
    state = create_state(to_logarithms(base.rope), optax.adam(config.learning_rate))
    steps = []
    for rows in batches:
        state, *measured = _step(state, base.params, rows, model=model, config=config, mesh=mesh)
        steps.append(measured)
    if not steps:
        raise InputError("`batches` is empty: give at least one batch to learn from")
    found, gradients = jax.tree.map(lambda *each: np.stack(each), *jax.device_get(steps))
    scale = from_logarithms(state.params)
    if not np.all(np.isfinite(found)) or not all_finite(finite(scale)):
        raise NonFiniteLoss(
            f"learning the scale vector became not finite in {len(found)} steps, with losses of {found.min()} to "
            f"{found.max()}: lower `learning_rate`"
        )
    return Learned(scale, found, gradients)


def to_logarithms(scale: ScaleVector) -> ScaleVector:
    """The logarithm of every number of a scale vector: the parametrisation that is learned."""
    return jax.tree.map(jnp.log, scale)


def from_logarithms(logarithms: ScaleVector) -> ScaleVector:
    """The scale vector with these logarithms."""
    return jax.tree.map(jnp.exp, logarithms)


@partial(jax.jit, static_argnames=("model", "config", "mesh"))
def _step(state: TrainState, params, rows, *, model, config, mesh):
    def loss(logarithms):
        variables = Variables(params, from_logarithms(logarithms))
        nll, count = summed_loss(variables, rows, model, config.loss_chunk, mesh)
        return nll / count

    value, gradient = jax.value_and_grad(loss)(state.params)
    learned = gradient
    if not config.attention_factor:
        learned = dataclasses.replace(gradient, attention_factor=jnp.zeros_like(gradient.attention_factor))
    # Optax raises its decays, Python floats, to an integer count.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optax.adam(config.learning_rate).update(learned, state.opt_state)
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), value, gradient
