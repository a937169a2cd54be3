"""The training step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import head_kernel
from rope_jax.training.context import forward_on, in_ring_order
from rope_jax.training.finite import all_finite, finite
from rope_jax.training.loss import cross_entropy, next_token_targets
from rope_jax.training.state import TrainState, Variables


def summed_loss(
    variables: Variables, rows: dict, model: LlamaConfig, loss_chunk: int, mesh: Mesh | None = None
) -> tuple[jax.Array, jax.Array]:
    """Next-token loss of one microbatch, differentiable in the variables.

    Args:
        rows: `tokens`, `segment_ids` and `positions`, each int32 `[B, T]`; with `variables.original` also the bool
            `short`.
        loss_chunk: tokens of a row projected to the vocabulary at a time (static).
        mesh: mesh that rows and their tokens are sharded over; None for one device (static).

    Returns:
        Pair of float32 scalars: summed NLL in nats, and the number of tokens predicted.
    """
    variables, rows = variables.of(rows)
    targets, weights = next_token_targets(rows["tokens"], rows["segment_ids"])
    rows, targets, weights = in_ring_order((rows, targets, weights), mesh)
    hidden = forward_on(mesh, model, variables, rows).states
    return cross_entropy(hidden, head_kernel(variables.params, model), targets, weights, loss_chunk, mesh=mesh)


def train_step(
    state: TrainState,
    batch: dict,
    loss: Callable,
    optimizer: optax.GradientTransformation,
    check_finite: bool = False,
) -> tuple[TrainState, dict]:
    """One update from `A` accumulated microbatches.

    The loss is the mean over all predicted tokens of all microbatches: gradients of *sums* are accumulated in
    float32 and divided once, so that accumulation changes memory and not the result.

    Args:
        batch: rows of `A` microbatches, arrays `[A, ...]`, such as int32 `[A, B, T]` tokens.
        loss: function of `state.params` and the rows of one microbatch that returns what `summed_loss` does.
        check_finite: also checks loss and gradients, and leaves the state unchanged if they are not finite.

    Returns:
        The next state, and metrics: `loss` in nats per token, `tokens` predicted, `grad_norm`; float32. With
        `check_finite` also `finite`, the flags of `finite.finite` for the gradients.
    """

    def accumulate(total, rows):
        (nll, count), grads = jax.value_and_grad(loss, has_aux=True)(state.params, rows)
        return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, (grads, nll, count)), None

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), state.params)
    (grads, nll, count), _ = jax.lax.scan(accumulate, (zeros, jnp.float32(0), jnp.float32(0)), batch)
    grads = jax.tree.map(lambda g: g / count, grads)
    # Optax raises its decays, Python floats, to an integer count.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": nll / count, "tokens": count, "grad_norm": optax.tree.norm(grads)}
    after = TrainState(state.step + 1, params, opt_state)
    if check_finite:
        metrics["finite"] = finite(grads)
        sound = jnp.isfinite(nll) & all_finite(metrics["finite"])
        after = jax.tree.map(lambda new, old: jnp.where(sound, new, old), after, state)
    return after, metrics
