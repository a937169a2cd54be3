"""Attention by the kernels of accelerators, through their public interfaces."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from rope_jax.model.arrays import GroupedKey, GroupedQuery, Key, LogSum, Output, Query, Segments
from rope_jax.model.flash import Mask, padded


def cudnn_attention(
    query: Query,
    key: Key,
    value: Key,
    segment_ids: Segments,
    *,
    packed: Callable[[Query, Key, Key, Segments], Query],
    window: int | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Query:
    """Causal self-attention by NVIDIA's cuDNN, through `jax.nn.dot_product_attention`, where rows are one document.

    That interface knows no documents but by a mask of T x T. So if a row holds several, the batch is computed by
    `packed`. cuDNN computes in bfloat16 or float16; the implementation 'xla' is its reference. `window` is the number
    of tokens that a query sees, its own included.
    """

    def one_document(query, key, value, segment_ids):
        length, local = query.shape[1], None if window is None else (window - 1, 0)
        # cuDNN differentiates no odd lengths. Padding at the end is not seen by the others under a causal mask.
        query, key, value = (_padded(x, 1, 2) for x in (query, key, value))
        return jax.nn.dot_product_attention(
            query, key, value, is_causal=True, local_window_size=local, implementation=implementation
        )[:, :length]

    single = jnp.all(segment_ids == segment_ids[:, :1])
    return jax.lax.cond(single, one_document, packed, query, key, value, jnp.asarray(segment_ids))


def pallas_attention(query: Query, key: Key, value: Key, segment_ids: Segments, *, interpret: bool = False) -> Query:
    """Causal self-attention of packed documents by JAX's kernel for GPUs, in blocks of 128 queries.

    It has no grouped heads: keys and values are repeated. `interpret` runs the kernel's program on any platform,
    slowly.
    """
    # Imported by those who use it only. Deprecated from JAX 0.12 on; its successor, tokamax, needs Python 3.12.
    from jax.experimental.pallas.ops.gpu import attention

    length, heads, dim = query.shape[1:]
    key, value = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (key, value))
    query, key, value = (_padded(x, 1) for x in (query, key, value))
    ids = _padded(segment_ids, 1, mode="edge")
    out = attention.mha(query, key, value, ids, sm_scale=dim**-0.5, causal=True, interpret=interpret)
    return jnp.asarray(out)[:, :length]


def splash_attention(
    query: Query, key: Key, value: Key, segment_ids: Segments, *, window: int | None = None, interpret: bool = False
) -> Query:
    """Causal self-attention by JAX's kernel for TPUs; blocks that the causal mask or the window hides cost nothing.

    `interpret` runs the kernel's program on any platform, slowly.
    """
    length, heads, dim = query.shape[1:]
    query = (query * jnp.asarray(dim**-0.5, query.dtype)).swapaxes(1, 2)
    query, key, value = (_padded(x, 2) for x in (query, key.swapaxes(1, 2), value.swapaxes(1, 2)))
    ids = _padded(segment_ids, 1, mode="edge")
    shape = query.shape[2], query.shape[2]
    splash = _splash()
    mask = splash.CausalMask(shape) if window is None else splash.LocalMask(shape, (window - 1, 0), 0)
    out = jnp.asarray(_by_row(_kernel(mask, heads, interpret), query, key, value, (ids, ids)))
    return out.swapaxes(1, 2)[:, :length]


def splash_piece(
    query: GroupedQuery, key: GroupedKey, value: GroupedKey, mask: Mask, causal: bool, *, interpret: bool = False
) -> tuple[Output, LogSum]:
    """Attention of one piece of queries to one piece of keys by JAX's kernel for TPUs, for a ring.

    The mask has no window: the kernel's is fixed at compilation, and how far keys are from a device's queries changes
    as they go around. The two pieces are one where it is `causal`; otherwise all keys come before all queries. Outputs
    leave the kernel in the dtype of the queries; with them comes the log of each softmax's sum.
    """
    b, k, g, size, d = query.shape
    q, key, value = (_padded(x, 2) for x in (query.reshape(b, k * g, size, d), key, value))
    # Padding is documents of its own: in a piece that comes before, keys after a query are seen too.
    ids = _padded(mask.queries.segments, 1, constant_values=-1), _padded(mask.keys.segments, 1, constant_values=-2)
    shape = q.shape[2], q.shape[2]
    seen = _splash().CausalMask(shape) if causal else _splash().FullMask(shape)
    out, (log_sum,) = _by_row(_kernel(seen, k * g, interpret, residuals=True), q, key, value, ids)
    return out[:, :, :size].reshape(query.shape).astype(jnp.float32), log_sum[:, :, :size].reshape(query.shape[:4])


def _padded(x, axis, multiple=128, **how):
    return padded(x, axis, -(-x.shape[axis] // multiple) * multiple, **how)


def _splash():
    # Imported by those who use it only: it takes a fifth of a second.
    from jax.experimental.pallas.ops.tpu import splash_attention

    return splash_attention


def _kernel(mask, heads, interpret, residuals=False):
    block = next(b for b in (512, 256, 128) if mask.shape[0] % b == 0)
    backward = {} if residuals else dict.fromkeys(("block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), block)
    return _splash().make_splash_mha_single_device(
        _splash().MultiHeadMask([mask] * heads),
        block_sizes=_splash().BlockSizes(block_q=block, block_kv=block, **backward),
        save_residuals=residuals,
        interpret=interpret,
    )


def _by_row(kernel, query, key, value, ids):
    return jax.vmap(lambda q, k, v, ids: kernel(q, k, v, _splash().SegmentIds(*ids)))(query, key, value, ids)
