"""Next-token cross entropy that never holds the logits of more than one chunk of tokens.

Shapes: B rows, T tokens, E hidden size, V vocabulary. Chunks are cut along T and keep B whole, so that inputs
sharded over rows, vocabulary or both stay so.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy(hidden, head, targets, weights, chunk):
    """Weighted sum of next-token negative log likelihoods; divide by the second value for their mean.

    Differentiated, it forms the gradients in the same pass over the chunks as the loss, because logits are
    dear to recompute and dearer to keep: three matrix products in all. Where rows lie on several devices, the
    head's gradient is summed over them once per chunk, so larger chunks communicate less.

    Args:
        hidden: `[B, T, E]`, any float dtype, which is that of the matrix products too.
        head: `[E, V]`, any float dtype.
        targets: int32 `[B, T]`, within the vocabulary also where the weight is zero.
        weights: float32 `[B, T]`.
        chunk: tokens of a row whose logits are formed at a time; needs not divide T.

    Returns:
        Pair of float32 scalars: sum of weighted NLL in nats, sum of weights.
    """
    return jnp.sum(token_nll(hidden, head, targets, chunk) * weights), jnp.sum(weights)


def token_nll(hidden, head, targets, chunk, wanted=None):
    """Negative log likelihood of every target.

    Args:
        hidden: `[B, T, E]`, any float dtype, which is that of the matrix product too.
        head: `[E, V]`, any float dtype.
        targets: int32 `[B, T]`, within the vocabulary.
        chunk: tokens of a row whose logits are formed at a time; needs not divide T.
        wanted: optional bool `[B, T]`; targets that are not wanted get zero, and a chunk without any that is
            costs nothing.

    Returns:
        float32 `[B, T]`, nats.
    """
    if wanted is None:
        wanted = jnp.ones(targets.shape, bool)
    head = head.astype(hidden.dtype)

    def step(_, inputs):
        h, t, w = inputs
        nll = jax.lax.cond(
            jnp.any(w),
            lambda: _nll(_logits(h, head), t)[0],
            lambda: jnp.zeros(t.shape, jnp.float32),
        )
        return None, jnp.where(w, nll, 0.0)

    _, nll = jax.lax.scan(step, None, tuple(_split(x, chunk) for x in (hidden, targets, wanted)))
    return _join(nll, targets.shape[1])


def next_token_targets(tokens, segment_ids):
    """What each token of a packed row is to predict.

    Args:
        tokens: int32 `[B, T]`.
        segment_ids: int32 `[B, T]`, the document of each token, 0 for padding.

    Returns:
        Targets int32 `[B, T]`, the tokens shifted left, and weights float32 `[B, T]`: 1 where the next token
        exists and belongs to the same document, else 0.
    """
    after = ((0, 0), (0, 1))
    targets = jnp.pad(tokens[:, 1:], after)
    same = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] != 0)
    return targets, jnp.pad(same, after).astype(jnp.float32)


def _cross_entropy_forward(hidden, head, targets, weights, chunk):
    kernel = head.astype(hidden.dtype)

    def step(d_head, inputs):
        h, t, w = inputs
        logits = _logits(h, kernel)
        nll, log_total, hit = _nll(logits, t)
        d_logits = (jnp.exp(logits - log_total[..., None]) - hit) * w[..., None]
        # Down to the dtype of the products, as differentiating the product itself would have it.
        d_logits = d_logits.astype(h.dtype)
        d_h = jnp.einsum("btv,ev->bte", d_logits, kernel, preferred_element_type=jnp.float32)
        d_head += jnp.einsum("bte,btv->ev", h, d_logits, preferred_element_type=jnp.float32)
        return d_head, (nll, d_h.astype(h.dtype))

    d_head, (nll, d_hidden) = jax.lax.scan(
        step, jnp.zeros(head.shape, jnp.float32), tuple(_split(x, chunk) for x in (hidden, targets, weights))
    )
    nll, d_hidden = (_join(x, targets.shape[1]) for x in (nll, d_hidden))
    # An empty array carries the dtype of `head`, which residuals can hold and a dtype itself they cannot.
    residuals = (d_hidden, d_head, nll, jnp.zeros((0,), head.dtype))
    return (jnp.sum(nll * weights), jnp.sum(weights)), residuals


def _cross_entropy_backward(chunk, residuals, cotangents):
    d_hidden, d_head, nll, like_head = residuals
    of_sum, of_weights = cotangents
    return (
        (d_hidden * of_sum).astype(d_hidden.dtype),
        (d_head * of_sum).astype(like_head.dtype),
        None,
        nll * of_sum + of_weights,
    )


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def _logits(hidden, head):
    return jnp.einsum("bte,ev->btv", hidden, head, preferred_element_type=jnp.float32)


def _nll(logits, targets):
    """NLL and log of the partition sum, both float32 `[B, T]`, and the one-hot targets, bool `[B, T, V]`."""
    # A comparison instead of a gather: it fuses into the sum, and needs no communication of logits when the
    # vocabulary is spread over devices.
    hit = jnp.arange(logits.shape[-1]) == targets[..., None]
    log_total = jax.nn.logsumexp(logits, axis=-1)
    return log_total - jnp.sum(jnp.where(hit, logits, 0.0), axis=-1), log_total, hit


def _split(x, chunk):
    """`[B, T, ...]` -> `[chunks, B, chunk, ...]`, padded with zeros."""
    b, t = x.shape[:2]
    chunk = min(chunk, t)
    x = jnp.pad(x, ((0, 0), (0, -t % chunk)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(b, -1, chunk, *x.shape[2:]).swapaxes(0, 1)


def _join(x, length):
    """The inverse of `_split`, cut to `length` tokens."""
    x = x.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
