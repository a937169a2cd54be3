"""Attention and its gradient written out in float64 NumPy."""

import numpy as np


def random_segments(rows, length, seed=0):
    # Ids are not in order, so that equality is what counts; a zero among them is a document like any other.
    rng = np.random.default_rng(seed)
    cuts = rng.random((rows, length)) < 0.1
    return np.take(np.array([3, 0, 7, 1, 5] * 40), np.cumsum(cuts, axis=1)).astype(np.int32)


def allowed_keys(segments, window=None):
    """Who sees whom, bool `[B, T, T]`: a causal mask over documents, with a sliding window."""
    length = segments.shape[1]
    back = np.arange(length)[:, None] - np.arange(length)
    return (back >= 0) & (back < (window or length)) & (segments[:, :, None] == segments[:, None, :])


def dense(query, key, value, allowed, cotangent=None):
    """Softmax attention by definition: `[B, T, H, D]`; with a cotangent also the gradients of query, key and value."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    kv_heads, group, scale = key.shape[2], query.shape[2] // key.shape[2], query.shape[-1] ** -0.5
    wide_key, wide_value = (np.repeat(x, group, axis=2) for x in (key, value))
    scores = np.where(allowed[:, None], np.einsum("bthd,bshd->bhts", query, wide_key) * scale, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bhts,bshd->bthd", weights, wide_value)
    if cotangent is None:
        return out
    d_weights = np.einsum("bthd,bshd->bhts", cotangent, wide_value)
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True)) * scale
    d_key, d_value = np.einsum("bhts,bthd->bshd", d_scores, query), np.einsum("bhts,bthd->bshd", weights, cotangent)
    grouped = (x.reshape(*x.shape[:2], kv_heads, group, -1).sum(3) for x in (d_key, d_value))
    return out, [np.einsum("bhts,bshd->bthd", d_scores, wide_key), *grouped]
