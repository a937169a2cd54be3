"""Causal attention over packed documents, and attention over a key-value cache.

Shapes: B rows, T queries, S keys, H query heads, K key heads, G = H / K, D head dimension.
"""

from __future__ import annotations

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
    b, t, h, d = query.shape
    k = key.shape[2]
    grouped = (query * jnp.asarray(d**-0.5, query.dtype)).reshape(b, t, k, h // k, d)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, key, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", weights, value).reshape(b, t, h, d)


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


def cached_attention(query, key, value, positions, window=None):
    """Attention of new tokens over a key-value cache whose slot `j` holds position `j`.

    Args:
        query: `[B, T, H, D]`, already rotated.
        key: `[B, S, K, D]` cache, the new tokens' keys included.
        value: `[B, S, K, D]` cache, likewise.
        positions: int32 `[B, T]` of the queries; slots beyond a query's position are not read, whatever they
            hold.
        window: as in `causal_attention`.

    Returns:
        `[B, T, H, D]` in the dtype of `query`.
    """
    return masked_attention(query, key, value, _visible(positions, jnp.arange(key.shape[1]), window))


def _visible(rows, columns, window):
    """Which keys at `columns [S]` a query at `rows [B, T]` sees: bool `[B, T, S]`."""
    mask = columns[None, None, :] <= rows[:, :, None]
    return mask if window is None else mask & (columns[None, None, :] > rows[:, :, None] - window)
