"""A short fine-tuning in memory, which keeps its loss after every update."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rope_jax.rope.embedding import ScaleVector
from rope_jax.training.state import Variables, create_state
from rope_jax.training.update import Training, update


def fine_tune(training: Training, params: Any, rope: ScaleVector, batches: Iterator[dict]) -> tuple[Any, list[float]]:
    """Trains all weights for `optimizer.steps` updates.

    Too short to be worth a checkpoint: what is interrupted starts over.

    Args:
        training: model, recipe and mesh.
        params: parameters to start from, which stay as they are.
        rope: scale vector.
        batches: int32 `[B, T]` rows of each update.

    Returns:
        The parameters, and the loss of each update's rows before it, nats per token.
    """
    state = create_state(jax.tree.map(jnp.copy, params), training.optimizer)
    losses = []
    with jax.set_mesh(training.mesh):
        for _ in range(training.config.optimizer.steps):
            rows = {name: row[None] for name, row in next(batches).items()}
            state, metrics = update(state, Variables(None, rope), rows, training)
            losses.append(metrics["loss"])
    return state.params, np.asarray(jax.device_get(losses), np.float64).tolist()
