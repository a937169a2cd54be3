"""The arrays of training: what the model computes with, and what an update changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rope_jax.data.mixed import SHORT


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Variables:
    """The arrays that the model computes with, apart from a batch; a pytree.

    Attributes:
        params: parameters of `Llama`; None among frozen variables if all of them are trained.
        rope: scale vector; None among frozen variables if it is trained.
        adapters: the model's collection `lora`, low-rank factors that projections add; None for none.
        original: scale vector of microbatches of short documents, shaped like `rope`; None if there are none.
    """

    params: Any
    rope: Any
    adapters: dict | None = None
    original: Any = None

    def of(self, rows: Mapping[str, Any]) -> tuple[Variables, dict]:
        """What one microbatch is computed with, its own scale vector alone, and its rows."""
        if self.original is None:
            return self, dict(rows)
        choose = partial(jnp.where, rows[SHORT])
        rope = jax.tree.map(choose, self.original, self.rope)
        rows = {name: value for name, value in rows.items() if name != SHORT}
        return dataclasses.replace(self, rope=rope, original=None), rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The arrays that an update changes, or their shapes or shardings; a pytree, the content of a checkpoint.

    Attributes:
        step: int32 scalar, updates so far.
        params: the trained numbers, a pytree whose structure the objective defines.
        opt_state: optimizer state.
    """

    step: Any
    params: Any
    opt_state: optax.OptState


def create_state(trained: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update, step 0."""
    return TrainState(jnp.zeros((), jnp.int32), trained, optimizer.init(trained))
