"""Attention by JAX's own kernel for TPUs: of whole sequences, and of the pieces that a ring cuts them into.

Shapes: B rows, T tokens, H query heads, K key heads, G = H / K, D head dimension; C tokens of a piece.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from rope_jax.model.flash import Tokens, padded_to_multiple

_padded = partial(padded_to_multiple, multiple=128)


def splash_attention(query, key, value, segment_ids, window=None, interpret: bool = False):
    """Causal self-attention by JAX's kernel for TPUs; blocks that the causal mask or the window hides cost nothing.

    Args:
        query: `[B, T, H, D]`, already rotated.
        key: `[B, T, K, D]`, already rotated.
        value: `[B, T, K, D]`.
        segment_ids: int32 `[B, T]`; a query sees only keys of its own id.
        window: tokens that a query sees, its own included; None is all before it.
        interpret: run the kernel's program on any platform, slowly.

    Returns:
        `[B, T, H, D]` in the dtype of `query`.
    """
    length, heads, dim = query.shape[1:]
    query = (query * jnp.asarray(dim**-0.5, query.dtype)).swapaxes(1, 2)
    # Padding is behind all others, which therefore do not see it.
    query, key, value = (_padded(x, 2) for x in (query, key.swapaxes(1, 2), value.swapaxes(1, 2)))
    kernel = _kernel(query.shape[2], heads, True, window, interpret)
    ids = _padded(segment_ids, 1, mode="edge")
    out = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, _segments(ids, ids)))(query, key, value, ids)
    return out.swapaxes(1, 2)[:, :length]


@dataclasses.dataclass(frozen=True)
class SplashPieces:
    """The products of a ring, as `rope_jax.model.ring.BlockPieces`, by JAX's kernel for TPUs. It has no window there.

    Partial outputs and gradients leave the kernel in the dtype of the queries; sums over pieces are in float32.

    Attributes:
        interpret: run the kernel's program on any platform, slowly.
    """

    interpret: bool = False

    def attend(self, query, key, value, queries: Tokens, keys: Tokens, causal: bool):
        q, k, v, ids = _piece(query, key, value, queries, keys)
        kernel = _kernel(q.shape[2], q.shape[1], causal, None, self.interpret, save_residuals=True)
        out, (log_sum,) = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, _segments(*ids)))(q, k, v, ids)
        size = query.shape[3]
        return (
            out[:, :, :size].reshape(query.shape).astype(jnp.float32),
            log_sum[:, :, :size].reshape(query.shape[:4]),
        )

    def gradient(self, query, key, value, queries: Tokens, keys: Tokens, log_sum, out, d_out, causal: bool):
        # Its public interface differentiates a whole softmax only; this is what it does so with.
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

        q, k, v, ids = _piece(query, key, value, queries, keys)
        kernel = _kernel(q.shape[2], q.shape[1], causal, None, self.interpret)
        b, h, size = q.shape[0], q.shape[1], query.shape[3]
        out, d_out = (_padded(x.reshape(b, h, size, -1), 2) for x in (out, d_out))
        log_sum = _padded(log_sum.reshape(b, h, size), 2)

        def row(q, k, v, ids, out, log_sum, d_out):
            masks = kernel.dq_mask_info, kernel.dkv_mask_info
            residuals = q, k, v, _segments(*ids), None, out, log_sum, *masks
            grads = splash_attention_kernel._splash_attention_bwd(**kernel.kwargs, res=residuals, do=d_out)
            return grads[3:6]

        grads = jax.vmap(row)(q, k, v, ids, out, log_sum, d_out)
        shapes = query.shape, key.shape, value.shape
        return tuple(g[:, :, :size].reshape(shape).astype(jnp.float32) for g, shape in zip(grads, shapes))


def _piece(query, key, value, queries, keys):
    """The arrays `[B, heads, C, D]` and documents of both, C raised to what the kernel takes."""
    b, k, g, size, d = query.shape
    # Padding is of documents of its own: in a piece that comes before, keys behind a query are seen too.
    ids = _padded(queries.segments, 1, constant_values=-1), _padded(keys.segments, 1, constant_values=-2)
    return *(_padded(x, 2) for x in (query.reshape(b, k * g, size, d), key, value)), ids


def _kernel(size, heads, causal, window, interpret, save_residuals=False):
    # A fifth of a second that only those who use it should wait.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    block = next(b for b in (512, 256, 128) if size % b == 0)
    mask = splash.CausalMask((size, size)) if causal else splash.FullMask((size, size))
    if window is not None:
        mask = splash.LocalMask((size, size), (window - 1, 0), 0)
    backward = dict(block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block)
    return splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(block_q=block, block_kv=block, **({} if save_residuals else backward)),
        save_residuals=save_residuals,
        interpret=interpret,
    )


def _segments(queries, keys):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    return splash.SegmentIds(queries, keys)
