"""Negative log likelihoods of tokens under a model, without ever holding T x V logits."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import Llama, head_kernel
from rope_jax.training.loss import token_nll


def make_token_nll(
    config: LlamaConfig, chunk: int, batch_sharding: NamedSharding | None = None
) -> Callable[..., jax.Array]:
    """Compiles, once per shape of batch, the scoring that the perplexities need.

    Rows need no mask for padding on the right: attention is causal, so nothing before it sees it.

    Args:
        config: model shape.
        chunk: tokens of a row whose logits are formed at a time.
        batch_sharding: sharding of the leading axis of the batch, for instance
            `NamedSharding(mesh, PartitionSpec(("data", "fsdp")))`, which its size must divide; default one
            device or XLA's choice.

    Returns:
        `score(params, rope, tokens, wanted)`, with tokens int32 `[B, T]` and wanted bool `[B, T]`, gives
        float32 `[B, T]`: at `[b, t]` the NLL in nats of `tokens[b, t + 1]` after `tokens[b, : t + 1]` where
        that is wanted, else 0; chunks in which nothing is wanted cost no logits. A new scale vector recompiles
        nothing. `functools.partial(score, params, rope)` is what `rope_jax.evaluation.perplexity` takes.
    """

    def score(params, rope, tokens, wanted):
        hidden = Llama(config).apply({"params": params}, tokens, rope, project=False)
        targets = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))
        wanted = wanted.at[:, -1].set(False)
        return token_nll(hidden, head_kernel(params, config), targets, chunk, wanted)

    if batch_sharding is None:
        return jax.jit(score)
    # Every process gets every row.
    compiled = jax.jit(score, out_shardings=NamedSharding(batch_sharding.mesh, PartitionSpec()))

    def score_sharded(params, rope, tokens, wanted):
        return compiled(params, rope, *jax.device_put((tokens, wanted), batch_sharding))

    return score_sharded
