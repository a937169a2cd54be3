"""Causal attention over packed documents, and attention over a key-value cache.

Shapes: B rows, T queries, S keys, H query heads, K key heads, G = H / K, D head dimension.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rope_jax.model.flash import MASKED, Tokens, attend_blocks, attend_blocks_gradient
from rope_jax.model.remat import ATTENTION


def causal_attention(query, key, value, segment_ids, chunk, window=None):
    """Causal self-attention that never materialises T x T and never crosses a document boundary.

    Queries and keys meet one pair of blocks at a time, in the backward pass too (see `rope_jax.model.flash`), so that
    memory is O(T) in both directions.

    Args:
        query: `[B, T, H, D]`, already rotated.
        key: `[B, T, K, D]`, already rotated.
        value: `[B, T, K, D]`.
        segment_ids: int32 `[B, T]`; a query sees only keys of its own id.
        chunk: queries and keys at a time, about.
        window: keys that a query sees, its own included; None is all before it.

    Returns:
        `[B, T, H, D]` in the dtype of `query`.
    """
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    return heads_last(_self_attention(by_head(query, key.shape[1]), key, value, segment_ids, chunk, window))


def by_head(query, kv_heads: int):
    """Queries as products with keys take them.

    Args:
        query: `[B, T, H, D]`.
        kv_heads: K.

    Returns:
        `[B, K, G, T, D]`, scaled by the root of D.
    """
    b, t, h, d = query.shape
    query = query * jnp.asarray(d**-0.5, query.dtype)
    return query.reshape(b, t, kv_heads, h // kv_heads, d).transpose(0, 2, 3, 1, 4)


def heads_last(out):
    """`[B, K, G, T, D]` as `[B, T, H, D]`."""
    b, k, g, t, d = out.shape
    return out.transpose(0, 3, 1, 2, 4).reshape(b, t, k * g, d)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _self_attention(query, key, value, segment_ids, chunk, window):
    """Of scaled queries `[B, K, G, T, D]`, keys and values `[B, K, T, D]`: as queries."""
    return _forward(query, key, value, segment_ids, chunk, window)[0]


def _forward(query, key, value, segment_ids, chunk, window):
    tokens = Tokens(jnp.arange(query.shape[3]), segment_ids)
    out, log_sum = attend_blocks(query, key, value, tokens, tokens, chunk, window)
    # Named, so that a policy can keep what the backward pass needs of a forward pass that is dear to repeat.
    out, log_sum = (checkpoint_name(x, ATTENTION) for x in (out.astype(query.dtype), log_sum))
    return out, (query, key, value, tokens, out, log_sum)


def _backward(chunk, window, residuals, d_out):
    query, key, value, tokens, out, log_sum = residuals
    shared = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    grads = attend_blocks_gradient(query, key, value, tokens, tokens, log_sum, shared, d_out, chunk, window)
    return *(grad.astype(x.dtype) for grad, x in zip(grads, (query, key, value))), None


_self_attention.defvjp(_forward, _backward)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer. All rows end in the same slot, so short prompts begin in later ones.

    Attributes:
        keys: `[B, K, D, S]`; each of the two lies as the products that read all of it take it.
        values: `[B, K, S, D]`.
        first: int32 `[B]`, the slot of each row's position 0; what lies before is padding.
        used: int32 scalar, slots written so far.
    """

    keys: jax.Array
    values: jax.Array
    first: jax.Array
    used: jax.Array

    def append(self, key, value) -> LayerCache:
        """The cache with the keys and values of the next tokens, `[B, T, K, D]` each, behind the others."""
        write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=self.used)
        return LayerCache(
            write(self.keys, key.transpose(0, 2, 3, 1).astype(self.keys.dtype), axis=3),
            write(self.values, value.swapaxes(1, 2).astype(self.values.dtype), axis=2),
            self.first,
            self.used + key.shape[1],
        )


def cached_attention(query, cache, chunk, window=None):
    """Causal attention of the newest tokens over a cache that holds their keys and values already.

    Many queries take blocks of keys, up to the last that they may see: scores stay small, and empty slots cost nothing.
    A single query takes all keys at once.

    Args:
        query: `[B, T, H, D]` of the last T slots, already rotated.
        cache: `LayerCache`; a query reads the slots from its row's first up to its own.
        chunk: as in `causal_attention`.
        window: as in `causal_attention`.

    Returns:
        `[B, T, H, D]` in the dtype of `query`.
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
    written = jnp.where(ids >= cache.first[:, None], 0, -1)
    queries = Tokens(places, jnp.zeros((b, t), jnp.int32))
    out, _ = attend_blocks(scaled, keys.swapaxes(2, 3), values, queries, Tokens(ids, written), chunk, window)
    return heads_last(out).astype(query.dtype)


def _all_keys(query, keys, values, seen):
    """Attention of one query in each row, float32 `[B, K, G, 1, D]`, to the keys that are `seen [B, S]`."""
    b, k, g, _, d = query.shape
    scores = jnp.where(seen[:, None, None], _vector_products(query.reshape(b, k, g, d), keys), MASKED)
    # Divided by the sum after the product with the values, which is smaller by S / D than the weights are.
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    out = _vector_products(weights.astype(values.dtype), values) / jnp.sum(weights, axis=-1, keepdims=True)
    return out[:, :, :, None]


def _vector_products(vectors, matrices):
    """`[B, K, G, M]` by `[B, K, M, N]`: float32 `[B, K, G, N]`."""
    if vectors.shape[2] == 1:
        # One vector by each matrix is bound by reading it: as sums it is spread over a processor's cores, where a
        # batch of products that are small each runs on one.
        products = vectors[:, :, 0, :, None].astype(jnp.float32) * matrices.astype(jnp.float32)
        return jnp.sum(products, axis=2)[:, :, None]
    return jnp.einsum("bkgm,bkmn->bkgn", vectors, matrices, preferred_element_type=jnp.float32)
