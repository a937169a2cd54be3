"""The training step."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import Llama, head_kernel
from rope_jax.rope.embedding import ScaleVector
from rope_jax.sharding import states_on
from rope_jax.training.context import attention_on, in_ring_order
from rope_jax.training.finite import all_finite, finite
from rope_jax.training.loss import cross_entropy, next_token_targets
from rope_jax.training.state import TrainState


def summed_loss(
    params,
    rows: dict,
    rope: ScaleVector,
    config: LlamaConfig,
    loss_chunk: int,
    adapters=None,
    mesh: Mesh | None = None,
):
    """Next-token loss of one microbatch, differentiable in the parameters and in the scale vector.

    Args:
        params: parameters of `Llama`.
        rows: `tokens`, `segment_ids` and `positions`, each int32 `[B, T]`.
        rope: scale vector.
        config: model config (static).
        loss_chunk: tokens of a row that are projected to the vocabulary at a time (static).
        adapters: low-rank factors that the projections add (see `lora.applied`); None for none.
        mesh: devices, over which rows and, if it has a context axis, sequences are cut; None for one (static).

    Returns:
        Pair of float32 scalars: summed NLL in nats, and the number of tokens predicted.
    """
    targets, weights = next_token_targets(rows["tokens"], rows["segment_ids"])
    rows, targets, weights = in_ring_order((rows, targets, weights), mesh)
    hidden = Llama(config, attention_on(config, mesh), states_on(mesh)).apply(
        {"params": params, "lora": adapters or {}},
        rows["tokens"],
        rope,
        rows["positions"],
        rows["segment_ids"],
        project=False,
    )
    return cross_entropy(hidden, head_kernel(params, config), targets, weights, loss_chunk, mesh)


def mean_loss(
    params, rows: dict, rope: ScaleVector, config: LlamaConfig, loss_chunk: int, mesh: Mesh | None = None
) -> jax.Array:
    """`summed_loss` per predicted token.

    Args:
        params: parameters of `Llama`.
        rows: `tokens`, `segment_ids` and `positions`, each int32 `[B, T]`.
        rope: scale vector.
        config: model config (static).
        loss_chunk: tokens of a row that are projected to the vocabulary at a time (static).
        mesh: as for `summed_loss`.

    Returns:
        float32 scalar, nats per token.
    """
    nll, count = summed_loss(params, rows, rope, config, loss_chunk, mesh=mesh)
    return nll / count


def train_step(
    state: TrainState,
    batch: dict,
    loss: Callable,
    optimizer: optax.GradientTransformation,
    check_finite: bool = False,
):
    """One update of whatever is trained, from `A` accumulated microbatches.

    The loss is the mean over all predicted tokens of all microbatches: gradients of *sums* are accumulated in
    float32 and divided once, so that accumulation changes memory and not the result.

    Args:
        state: current state; its `params` are any pytree.
        batch: `tokens`, `segment_ids` and `positions`, each int32 `[A, B, T]`.
        loss: gives the summed NLL and the number of tokens predicted of `(params, rows)`, rows `[B, T]`; such as
            `summed_loss` (static).
        optimizer: of these parameters (static).
        check_finite: also look for numbers that are not finite, and then change nothing (static).

    Returns:
        The next state, and metrics: `loss` in nats per token, `tokens` predicted, `grad_norm`; float32. With
        `check_finite` also `finite`, which `finite.finite` gives of the gradients.
    """

    def accumulate(total, rows):
        (nll, count), grads = jax.value_and_grad(loss, has_aux=True)(state.params, rows)
        return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, (grads, nll, count)), None

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), state.params)
    (grads, nll, count), _ = jax.lax.scan(accumulate, (zeros, jnp.float32(0), jnp.float32(0)), batch)
    grads = jax.tree.map(lambda g: g / count, grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": nll / count, "tokens": count, "grad_norm": optax.tree.norm(grads)}
    after = TrainState(state.step + 1, params, opt_state)
    if check_finite:
        metrics["finite"] = finite(grads)
        sound = jnp.isfinite(nll) & all_finite(metrics["finite"])
        after = jax.tree.map(lambda new, old: jnp.where(sound, new, old), after, state)
    return after, metrics
