"""Which part of a step is the first that is not finite.

The training step, if asked, looks at the loss, and at each gradient, layer by layer. Only where these are not finite
is the forward pass repeated to find the layer that it began in.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rope_jax.model.config import LlamaConfig
from rope_jax.training.context import forward_on, in_ring_order
from rope_jax.training.state import Variables


class NonFiniteLoss(ArithmeticError):
    """A loss, a gradient or a weight became NaN or infinite; the message names the step."""


def finite(tree):
    """Whether each array of a pytree is finite, a bool; `[layers]` for each below a key `layers`, which is stacked."""

    def check(path, leaf):
        return jnp.all(jnp.isfinite(leaf), axis=tuple(range(1 if _stacked(path) else 0, leaf.ndim)))

    return jax.tree_util.tree_map_with_path(check, tree)


def all_finite(flags) -> jax.Array:
    """Whether all of `finite` hold, bool scalar."""
    return jnp.all(jnp.stack([jnp.all(flag) for flag in jax.tree.leaves(flags)]))


def explain(flags, variables: Variables, rows: dict, model: LlamaConfig, mesh: Mesh | None) -> str:
    """Names the first part of a step that is not finite, in the order of computation.

    Args:
        flags: `finite` of the gradients.
        variables: what the model computed with before the step.
        rows: rows of the step's `A` microbatches, arrays `[A, ...]`.

    Returns:
        A clause such as 'the output of layer 3 (counted from 0)'.
    """
    for what, tree in (("weight", variables.params), ("low-rank factor", variables.adapters or {})):
        if found := _first(jax.device_get(jax.jit(finite)(tree)), range(model.num_layers)):
            return f"the {what} {found}"
    for number in range(len(rows["tokens"])):
        micro = {name: value[number] for name, value in rows.items()}
        inspected = _inspected(variables, micro, model, mesh)
        for name, flag in zip(("embedding", "output", "final norm"), jax.device_get(inspected)):
            if not np.all(flag):
                layer = f" of layer {int(np.argmin(flag))} (counted from 0)" if np.ndim(flag) else ""
                return f"the {name}{layer} in the forward pass"
    found = _first(jax.device_get(flags), reversed(range(model.num_layers)))
    return f"the gradient of {found}" if found else "the loss, formed from finite states"


@partial(jax.jit, static_argnames=("model", "mesh"))
def _inspected(variables, rows, model, mesh):
    """Whether the embedded tokens, each layer's output and the final states are finite."""

    def inspect(states):
        return jnp.all(jnp.isfinite(states))

    variables, rows = variables.of(rows)
    return forward_on(mesh, model, variables, in_ring_order(rows, mesh), inspect).inspected


def _first(flags, layers) -> str | None:
    """The first array that is not finite: layer by layer in the order given, then what is in none."""
    found = jax.tree_util.tree_flatten_with_path(flags)[0]
    stacked = [(path, flag) for path, flag in found if _stacked(path)]
    for layer in layers:
        for path, flag in stacked:
            if not flag[layer]:
                return f"{_name(path)} of layer {layer} (counted from 0)"
    return next((_name(path) for path, flag in found if not _stacked(path) and not flag), None)


def _stacked(path) -> bool:
    return any(getattr(key, "key", None) == "layers" for key in path)


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
