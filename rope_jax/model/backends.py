"""Causal self-attention of packed documents by the kernels of each platform, behind one signature.

`cpu` is plain JAX and runs anywhere; `cudnn` is the flash attention of NVIDIA's library; `splash` is JAX's own kernel
for TPUs. All take grouped query heads, a sliding window and documents, and none replaces another that was asked for.

Shapes: B rows, T tokens, H query heads, K key heads, D head dimension.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rope_jax.errors import InputError
from rope_jax.model.attention import causal_attention
from rope_jax.model.config import LlamaConfig
from rope_jax.model.remat import ATTENTION


def attend(query, key, value, segment_ids, config: LlamaConfig):
    """Causal self-attention by `config.attention`.

    Args:
        query: `[B, T, H, D]`, already rotated.
        key: `[B, T, K, D]`, already rotated.
        value: `[B, T, K, D]`.
        segment_ids: int32 `[B, T]`; a query sees only keys of its own id.
        config: model config: backend, keys at a time, window.

    Returns:
        `[B, T, H, D]` in the dtype of `query`.
    """
    arrays = query, key, value, segment_ids
    # What a policy may keep for the backward pass (see `remat`); `cpu` names it itself, with the sums that go with it.
    if config.attention == "cudnn":
        return checkpoint_name(cudnn_attention(*arrays, config.sliding_window), ATTENTION)
    if config.attention == "splash":
        return checkpoint_name(splash_attention(*arrays, config.sliding_window), ATTENTION)
    return causal_attention(*arrays, config.attention_chunk, config.sliding_window)


def check_backend(config: LlamaConfig) -> None:
    """Checks that this machine has the backend that was asked for, and that it takes this model.

    Args:
        config: model config.

    Raises:
        InputError: naming what is missing.
    """
    platform, wanted = jax.default_backend(), {"cudnn": "gpu", "splash": "tpu"}.get(config.attention)
    field = f"config.model.attention is '{config.attention}'"
    if wanted and platform != wanted:
        raise InputError(f"{field}, which needs a {wanted}, and JAX has a {platform} here: 'cpu' runs anywhere")
    if config.attention != "cudnn":
        return
    if config.dtype == "float32":
        raise InputError(f"{field}, which computes in 16 bits: set config.model.dtype to 'bfloat16'")
    device = jax.local_devices()[0]
    if "." not in str(getattr(device, "compute_capability", "")):
        raise InputError(f"{field}, which needs a GPU of NVIDIA, and this is a {device.device_kind}: use 'cpu'")
    # From Hopper on, 9.0, heads may be twice as wide.
    widest = 256 if float(device.compute_capability) >= 9 else 128
    if config.head_dim % 8 or config.head_dim > widest:
        raise InputError(
            f"{field}, which takes head dimensions that are multiples of 8 up to {widest} on a {device.device_kind}, "
            f"and the model's is {config.head_dim}: use 'cpu'"
        )


def cudnn_attention(query, key, value, segment_ids, window=None, implementation: str = "cudnn"):
    """Causal self-attention by cuDNN, through `jax.nn.dot_product_attention`.

    That interface knows no documents, and lengths alone (`key_value_seq_lengths`) cannot say where the second one of
    a row begins. So rows of several documents get a mask, which cuDNN adds to the scores: correct in value and
    gradient, for 4 T^2 bytes per row on top (the mask and a gradient of it that nobody reads). Where every row is a
    single document, the kernel runs without it.

    Args:
        query: `[B, T, H, D]`, bfloat16 or float16, already rotated.
        key: `[B, T, K, D]`, already rotated.
        value: `[B, T, K, D]`.
        segment_ids: int32 `[B, T]`; a query sees only keys of its own id.
        window: tokens that a query sees, its own included; None is all before it.
        implementation: of `jax.nn.dot_product_attention`; 'xla' is its reference.

    Returns:
        `[B, T, H, D]` in the dtype of `query`.
    """
    length = query.shape[1]
    # With a mask, cuDNN differentiates even lengths only.
    query, key, value, segment_ids = _padded(2, query, key, value, segment_ids)
    attention = partial(jax.nn.dot_product_attention, is_causal=True, implementation=implementation)

    def documents(query, key, value):
        mask = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
        if window is not None:
            places = jnp.arange(query.shape[1])
            mask &= places > places[:, None] - window
        return attention(query, key, value, mask=mask)

    def one_document(query, key, value):
        return attention(query, key, value, local_window_size=None if window is None else (window - 1, 0))

    # Padding at the end is seen by itself only, under a causal mask.
    single = jnp.all(segment_ids[:, :length] == segment_ids[:, :1])
    return jax.lax.cond(single, one_document, documents, query, key, value)[:, :length]


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
    # A fifth of a second that only those who use it should wait.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    length, heads, dim = query.shape[1:]
    query = query * jnp.asarray(dim**-0.5, query.dtype)
    query, key, value, segment_ids = _padded(128, query, key, value, segment_ids)
    size = query.shape[1]
    block = next(b for b in (512, 256, 128) if size % b == 0)
    mask = splash.CausalMask((size, size)) if window is None else splash.LocalMask((size, size), (window - 1, 0), 0)
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        interpret=interpret,
    )

    def row(query, key, value, ids):
        return kernel(*(x.swapaxes(0, 1) for x in (query, key, value)), splash.SegmentIds(ids, ids)).swapaxes(0, 1)

    return jax.vmap(row)(query, key, value, segment_ids)[:, :length]


def _padded(multiple, query, key, value, segment_ids):
    """The arrays with T raised to a multiple; behind all others, padding is not seen by them."""
    padding = -query.shape[1] % multiple
    arrays = (jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (query, key, value))
    return *arrays, jnp.pad(segment_ids, ((0, 0), (0, padding)), mode="edge")
