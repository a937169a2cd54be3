"""The final states of the last tokens of a row, for scores that look at no others."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rope_jax.model.attention import LayerCache
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import Block, RMSNorm
from rope_jax.rope.embedding import ScaleVector


def tail_states(params, config: LlamaConfig, rope: ScaleVector, tokens, first, tail: int):
    """Final normalised states of the last tokens of each row.

    The last layer is asked about these only: of the others it needs keys and values, which are the smaller part of
    its work.

    Args:
        params: parameters of `Llama`.
        config: its config.
        rope: scale vector.
        tokens: int32 `[B, T]`; rows end in the last column.
        first: int32 `[B]`, the column of each row's position 0; what lies before is padding.
        tail: tokens at the end whose states are wanted, 1 .. T.

    Returns:
        `[B, tail, E]` in the computation dtype.
    """
    b, t = tokens.shape
    positions = jnp.maximum(jnp.arange(t) - first[:, None], 0)
    factors = jnp.broadcast_to(rope.factors, (config.num_layers, config.head_dim // 2))
    empty = jnp.zeros((b, config.num_kv_heads, t, config.head_dim), config.dtype)
    cache = LayerCache(empty.swapaxes(2, 3), empty, first, jnp.int32(0))

    def block(x, i, tail):
        layer = jax.tree.map(lambda p: p[i], params["layers"])
        arguments = x, factors[i], cache, rope.attention_factor, positions, None
        return Block(config, tail=tail).apply({"params": layer}, *arguments)[0]

    x = jnp.take(params["embedding"], tokens, axis=0).astype(config.dtype)
    last = config.num_layers - 1
    x, _ = jax.lax.scan(lambda x, i: (block(x, i, 0), None), x, jnp.arange(last))
    return RMSNorm(config).apply({"params": params["norm"]}, block(x, last, tail))
