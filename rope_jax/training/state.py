"""The arrays of training: what the model computes with, and what an update changes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

# A leaf of a pytree: an array, or its shape or its sharding in a pytree of the same structure.
Leaf = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Variables:
    """The arrays that the model computes with, apart from a batch; a pytree.

    Attributes:
        params: parameters of `Llama`; None among frozen variables if all of them are trained.
        rope: scale vector; None among frozen variables if it is trained.
        adapters: the model's collection `lora`, low-rank factors that projections add; None for none.
    """

    params: Any
    rope: Any
    adapters: dict | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The arrays that an update changes; a pytree, the content of a checkpoint.

    Attributes:
        step: int32 scalar, updates so far.
        params: the trained numbers, a pytree whose structure the objective defines.
        opt_state: optimizer state.
    """

    step: Leaf
    params: Any
    opt_state: optax.OptState


def create_state(trained: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update.

    Args:
        trained: pytree of the trained numbers.
        optimizer: their optimizer.

    Returns:
        The state, with step 0.
    """
    return TrainState(jnp.zeros((), jnp.int32), trained, optimizer.init(trained))
