"""Causal attention over packed documents, and attention over a KV cache."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rope_jax.model import cpu
from rope_jax.model.arrays import GroupedQuery, Key, Query, Segments
from rope_jax.model.cache import LayerCache
from rope_jax.model.flash import MASKED, Mask, Softmax, Tokens, attend_blocks, attend_blocks_gradient
from rope_jax.model.remat import ATTENTION


def causal_attention(
    query: Query, key: Key, value: Key, segment_ids: Segments, *, chunk: int, window: int | None = None
) -> Query:
    """Causal self-attention that never materialises T x T and never crosses a document boundary.

    Queries and keys meet one pair of blocks at a time, in the backward pass too: memory is O(T) in both directions.

    Args:
        query: of the last T of S tokens; the dtype of the output.
        chunk: queries and keys at a time, about.
        window: keys that a query sees, its own included; None is all before it.
    """
    keys = Tokens(jnp.arange(key.shape[1]), segment_ids)
    queries = Tokens(keys.places[-query.shape[1] :], segment_ids[:, -query.shape[1] :])
    query, key, value = by_head(query, key.shape[2]), key.swapaxes(1, 2), value.swapaxes(1, 2)
    return heads_last(_self_attention(query, key, value, Mask(queries, keys, window), chunk))


def by_head(query: Query, kv_heads: int) -> GroupedQuery:
    """Queries grouped by key head and scaled by `D^-1/2`, as products with keys take them."""
    b, t, h, d = query.shape
    query = query * jnp.asarray(d**-0.5, query.dtype)
    return query.reshape(b, t, kv_heads, h // kv_heads, d).transpose(0, 2, 3, 1, 4)


def heads_last(out: GroupedQuery) -> Query:
    """Outputs in the layout of the model's queries."""
    b, k, g, t, d = out.shape
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, k * g, d)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _self_attention(query, key, value, mask, chunk):
    """Softmax of `GroupedQuery` over `GroupedKey`; the output is shaped like the queries."""
    return _forward(query, key, value, mask, chunk)[0]


def _forward(query, key, value, mask, chunk):
    out, log_sum = attend_blocks(query, key, value, mask, chunk=chunk)
    # Named, so that a checkpointing policy can keep what the backward pass needs of an expensive forward pass.
    out, log_sum = (checkpoint_name(x, ATTENTION) for x in (out.astype(query.dtype), log_sum))
    return out, (query, key, value, mask, out, log_sum)


def _backward(chunk, residuals, d_out):
    query, key, value, mask, out, log_sum = residuals
    grads = attend_blocks_gradient(query, key, value, mask, Softmax(out, log_sum, d_out), chunk=chunk)
    return *(grad.astype(x.dtype) for grad, x in zip(grads, (query, key, value))), None


_self_attention.defvjp(_forward, _backward)


def cached_attention(query: Query, cache: LayerCache, *, chunk: int, window: int | None = None) -> Query:
    """Causal attention of the newest tokens over a cache that holds their keys and values already.

    Many queries take blocks of keys, up to the last that they may see: scores stay small, and empty slots cost nothing.
    A single query takes all keys at once. A query reads the slots from its row's first up to its own.
    """
    b, t = query.shape[:2]
    k, slots = cache.values.shape[1:3]
    scaled = by_head(query, k)
    keys, values = cache.keys.astype(query.dtype), cache.values.astype(query.dtype)
    places, ids = cache.used - t + jnp.arange(t), jnp.arange(slots)
    if t == 1:
        seen = (ids <= places) & (ids >= cache.first[:, None])
        if window is not None:
            seen &= ids > places - window
        return heads_last(_all_keys(scaled, keys, values, seen)).astype(query.dtype)
    # Padding in front is a document of its own, of which no query is.
    queries = Tokens(places, jnp.zeros((b, t), jnp.int32))
    mask = Mask(queries, Tokens(ids, jnp.where(ids >= cache.first[:, None], 0, -1)), window)
    out, _ = attend_blocks(scaled, keys.swapaxes(2, 3), values, mask, chunk=chunk)
    return heads_last(out).astype(query.dtype)


def _all_keys(query, keys, values, seen):
    """Attention of one query in each row, float32 `[B, K, G, 1, D]`, to the keys that are `seen [B, S]`."""
    b, k, g, _, d = query.shape
    scores = jnp.where(seen[:, None, None], cpu.vector_products(query.reshape(b, k, g, d), keys), MASKED)
    # Divided by the sum after the product with the values, which is smaller by S / D than the weights are.
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    out = cpu.vector_products(weights.astype(values.dtype), values) / jnp.sum(weights, axis=-1, keepdims=True)
    return out[:, :, :, None]
