"""Scale vectors learned by gradient descent.

The rotary embedding is differentiable in its factors, so they can be learned on a few batches at the extended length.
LongRoPE (arXiv 2402.13753) searches the same space with about a thousand perplexity evaluations.
"""

import dataclasses
import math
from collections.abc import Iterable
from functools import partial

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
from rope_jax.training.step import summed_loss, train_step


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


def learn(
    base: Variables,
    model: LlamaConfig,
    batches: Iterable[dict],
    config: LearnConfig = LearnConfig(),
    mesh: Mesh | None = None,
) -> tuple[ScaleVector, np.ndarray]:
    """Lowers the loss of a frozen model by gradient descent on its scale vector, one step per batch.

    Factors are learned as logarithms: they stay positive, and a step is relative, the same for a factor of 1 and of 32.

    Args:
        base: parameters, which stay unchanged, and the scale vector to start from, `[D/2]` or `[layers, D/2]`.
        model: model config.
        batches: dicts of int32 `[B, T]` `tokens`, `segment_ids` and `positions`, T the extended context.
        config: learning rate and what is learned.
        mesh: mesh that parameters and batches are sharded over; None for one device.

    Returns:
        The learned vector, shaped like the one in `base`, and the losses, float32 `[steps]`, nats per token, each
        before its step.

    Raises:
        InputError: if `batches` is empty.
        NonFiniteLoss: if a loss or the learned vector is not finite.
    """
    state = create_state(to_logarithms(base.rope), optax.adam(config.learning_rate))
    losses = []
    for rows in batches:
        state, loss = _step(state, base.params, rows, model=model, config=config, mesh=mesh)
        losses.append(loss)
    if not losses:
        raise InputError("`batches` is empty: give at least one batch to learn from")
    scale, found = from_logarithms(state.params), np.array(jax.device_get(losses), np.float32)
    if not np.all(np.isfinite(found)) or not all_finite(finite(scale)):
        raise NonFiniteLoss(
            f"learning the scale vector became not finite in {len(found)} steps, with losses of {found.min()} to "
            f"{found.max()}: lower `learning_rate`"
        )
    return scale, found


def to_logarithms(scale: ScaleVector) -> ScaleVector:
    """The logarithm of every number of a scale vector: the parametrisation that is learned."""
    return jax.tree.map(jnp.log, scale)


def from_logarithms(logarithms: ScaleVector) -> ScaleVector:
    """The scale vector with these logarithms."""
    return jax.tree.map(jnp.exp, logarithms)


@partial(jax.jit, static_argnames=("model", "config", "mesh"))
def _step(state: TrainState, params, rows, *, model, config, mesh):
    def loss(logarithms, rows):
        if not config.attention_factor:
            fixed = jax.lax.stop_gradient(logarithms.attention_factor)
            logarithms = dataclasses.replace(logarithms, attention_factor=fixed)
        return summed_loss(Variables(params, from_logarithms(logarithms)), rows, model, config.loss_chunk, mesh)

    batch = {name: row[None] for name, row in rows.items()}
    state, metrics = train_step(state, batch, loss, optax.adam(config.learning_rate))
    return state, metrics["loss"]
