"""Causal attention over packed documents, and attention over a key-value cache.

Shapes: B rows, T queries, S keys, H query heads, K key heads, G = H / K, D head dimension.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

# Finite, so that a row with every key masked stays finite instead of turning into NaN.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)

# Query chunks are put into at most this many groups; a group reads keys up to its own last query only, so the
# work wasted above the diagonal is at most 1 / GROUPS of the whole. Groups are independent, and a compiler may keep
# the scores of all of them at once; chunks within a group are taken one after the other.
GROUPS = 16


def masked_attention(query, key, value, mask):
    """Softmax attention with an explicit mask; scores and softmax in float32.

    Args:
        query: `[B, T, H, D]`.
        key: `[B, S, K, D]`.
        value: `[B, S, K, D]`.
        mask: bool, broadcastable to `[B, T, S]`; True where attention is allowed.

    Returns:
        `[B, T, H, D]` in the dtype of `query`.
    """
    scores = jnp.where(jnp.expand_dims(mask, (1, 2)), _scores(query, key), MASKED)
    # Divided by the sum after the product with the values, which is smaller by S / D than the weights are.
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    out = _weighted(weights, value) / jnp.sum(weights, axis=-1, keepdims=True)
    return _heads_last(out, query)


def _scores(query, key):
    """Scaled products float32 `[B, K, G, T, S]`, as one matrix product for each row and key head."""
    b, t, h, d = query.shape
    s, k = key.shape[1:3]
    query = query * jnp.asarray(d**-0.5, query.dtype)
    grouped = query.reshape(b, t, k, h // k, d).transpose(0, 2, 3, 1, 4).reshape(b, k, h // k * t, d)
    scores = jnp.einsum("bkrd,bskd->bkrs", grouped, key, preferred_element_type=jnp.float32)
    return scores.reshape(b, k, h // k, t, s)


def _weighted(weights, value):
    """Sums of values float32 `[B, K, G, T, D]`, weighted by `[B, K, G, T, S]`."""
    b, k, g, t, s = weights.shape
    rows = weights.astype(value.dtype).reshape(b, k, g * t, s)
    out = jnp.einsum("bkrs,bskd->bkrd", rows, value, preferred_element_type=jnp.float32)
    return out.reshape(b, k, g, t, -1)


def _heads_last(out, query):
    """`[B, K, G, T, D]` in the shape and dtype of `query`."""
    return out.transpose(0, 3, 1, 2, 4).reshape(query.shape).astype(query.dtype)


def causal_attention(query, key, value, segment_ids, chunk, window=None):
    """Causal self-attention that never materialises T x T and never crosses a document boundary.

    Queries are taken `chunk` at a time against the keys before them; the backward pass recomputes each
    chunk's scores (arXiv 2112.05682), so memory is O(T * chunk) in both directions.

    Args:
        query: `[B, T, H, D]`, already rotated.
        key: `[B, T, K, D]`, already rotated.
        value: `[B, T, K, D]`.
        segment_ids: int32 `[B, T]`; a query sees only keys of its own id.
        chunk: queries at a time.
        window: keys that a query sees, its own included; None is all before it.

    Returns:
        `[B, T, H, D]` in the dtype of `query`.
    """
    b, t, h, d = query.shape
    if t <= chunk:
        rows = jnp.arange(t)
        return _attend_chunk(query, segment_ids, rows, key, value, segment_ids, rows, window)
    padding = -t % chunk
    # Padded queries carry no segment that a key has; what they return is cut off at the end.
    query = jnp.pad(query, ((0, 0), (0, padding), (0, 0), (0, 0)))
    query_segments = jnp.pad(segment_ids, ((0, 0), (0, padding)), constant_values=-1)
    chunks = (t + padding) // chunk
    per_group = max(2, -(-chunks // GROUPS))

    outputs = []
    for first in range(0, chunks, per_group):
        count = min(per_group, chunks - first)
        start, end = first * chunk, (first + count) * chunk
        low = 0 if window is None else max(0, start - window + 1)  # no query of this group sees further back
        columns = jnp.arange(low, min(end, t))
        keys = (key[:, low:end], value[:, low:end], segment_ids[:, low:end], columns, window)
        q = query[:, start:end].reshape(b, count, chunk, h, d).swapaxes(0, 1)
        segments = query_segments[:, start:end].reshape(b, count, chunk).swapaxes(0, 1)
        rows = jnp.arange(start, end).reshape(count, chunk)
        if count == 1:
            out = _attend_chunk(q[0], segments[0], rows[0], *keys)
        else:
            out = jax.lax.map(lambda c, keys=keys: _attend_chunk(*c, *keys), (q, segments, rows))
            out = out.swapaxes(0, 1).reshape(b, count * chunk, h, d)
        outputs.append(out)
    return jnp.concatenate(outputs, axis=1)[:, :t]


@partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
def _attend_chunk(query, query_segments, rows, key, value, key_segments, columns, window):
    same = query_segments[:, :, None] == key_segments[:, None, :]
    return masked_attention(query, key, value, _visible(rows[None], columns, window) & same)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer. All rows end in the same slot, so short prompts begin in later ones.

    Attributes:
        keys: `[B, K, S, D]`; slots lie beside each other, because every step reads them all.
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
        write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=self.used, axis=2)
        return LayerCache(
            write(self.keys, key.swapaxes(1, 2).astype(self.keys.dtype)),
            write(self.values, value.swapaxes(1, 2).astype(self.values.dtype)),
            self.first,
            self.used + key.shape[1],
        )


def cached_attention(query, cache, chunk, window=None):
    """Causal attention of the newest tokens over a cache that holds their keys and values already.

    Many queries go `chunk` at a time over as many keys at a time, with a running softmax (arXiv 2112.05682), up to
    the last key they may see: scores stay small, and empty slots cost nothing. A single query takes all keys at once.

    Args:
        query: `[B, T, H, D]` of the last T slots, already rotated.
        cache: `LayerCache`; a query reads the slots from its row's first up to its own.
        chunk: queries and keys at a time.
        window: as in `causal_attention`.

    Returns:
        `[B, T, H, D]` in the dtype of `query`.
    """
    b, t, h, d = query.shape
    slots = cache.keys.shape[2]
    rows = cache.used - t + jnp.arange(t)
    if t == 1 or slots <= chunk:
        return masked_attention(query, *_read(cache, 0, slots, rows, window, query.dtype))
    count = -(-t // chunk)
    padding = count * chunk - t
    query = jnp.pad(query, ((0, 0), (0, padding), (0, 0), (0, 0)))
    rows = jnp.pad(rows, (0, padding), mode="edge")
    parts = query.reshape(b, count, chunk, h, d).swapaxes(0, 1), rows.reshape(count, chunk)
    out = jax.lax.map(lambda part: _running_attention(*part, cache, chunk, window), parts)
    return out.swapaxes(0, 1).reshape(b, count * chunk, h, d)[:, :t]


def _running_attention(query, rows, cache, chunk, window):
    """Queries at ascending slots `rows` over the keys up to the last of them, `chunk` keys at a time."""
    b, t, h, d = query.shape
    k, slots = cache.keys.shape[1:3]

    def add(i, carry):
        out, largest, total = carry
        # The last chunk is moved back to where the slots end, and leaves out what the one before has read.
        start = jnp.minimum(i * chunk, slots - chunk)
        key, value, mask = _read(cache, start, chunk, rows, window, query.dtype)
        mask &= start + jnp.arange(chunk) >= i * chunk
        scores = jnp.where(jnp.expand_dims(mask, (1, 2)), _scores(query, key), MASKED)
        new = jnp.maximum(largest, jnp.max(scores, axis=-1, keepdims=True))
        # Masked keys in front get weights of 1, which the first key that counts scales to 0.
        weights, before = jnp.exp(scores - new), jnp.exp(largest - new)
        total = total * before + jnp.sum(weights, axis=-1, keepdims=True)
        return out * before + _weighted(weights, value), new, total

    shape = (b, k, h // k, t)
    empty = jnp.zeros((*shape, d)), jnp.full((*shape, 1), MASKED), jnp.zeros((*shape, 1))
    oldest = 0 if window is None else jnp.maximum(rows[0] - window + 1, 0) // chunk
    out, _, total = jax.lax.fori_loop(oldest, rows[-1] // chunk + 1, add, empty)
    return _heads_last(out / total, query)


def _read(cache, start, count, rows, window, dtype):
    """Keys and values `[B, count, K, D]` from slot `start` on, and the mask `[B, T, count]` of queries at `rows`."""

    def part(x):
        # A product with a swapped operand reads it where it lies.
        return jax.lax.dynamic_slice_in_dim(x, start, count, axis=2).swapaxes(1, 2).astype(dtype)

    ids = start + jnp.arange(count)
    mask = _visible(rows[None], ids, window) & (ids >= cache.first[:, None, None])
    return part(cache.keys), part(cache.values), mask


def _visible(rows, columns, window):
    """Which keys at `columns [S]` a query at `rows [B, T]` sees: bool `[B, T, S]`."""
    mask = columns[None, None, :] <= rows[:, :, None]
    return mask if window is None else mask & (columns[None, None, :] > rows[:, :, None] - window)
