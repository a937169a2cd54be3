"""Causal self-attention of packed documents by the kernels of each platform, behind one signature.

`cpu` is plain JAX and runs anywhere; `cudnn` is the flash attention of NVIDIA's library; `splash` is JAX's own kernel
for TPUs. All take grouped query heads, a sliding window and documents, and none replaces another that was asked for.

Shapes: B rows, T tokens, H query heads, K key heads, D head dimension.
"""

from __future__ import annotations

import jax
from jax.ad_checkpoint import checkpoint_name

from rope_jax.errors import InputError
from rope_jax.model.attention import causal_attention
from rope_jax.model.config import LlamaConfig
from rope_jax.model.cudnn import CudnnPieces, cudnn_attention
from rope_jax.model.remat import ATTENTION
from rope_jax.model.ring import BlockPieces
from rope_jax.model.splash import SplashPieces, splash_attention


def attend(query, key, value, segment_ids, config: LlamaConfig):
    """Causal self-attention by `config.attention`.

    Args:
        query: `[B, T, H, D]`, already rotated.
        key: `[B, T, K, D]`, already rotated.
        value: `[B, T, K, D]`.
        segment_ids: int32 `[B, T]`; a query sees only keys of its own id.
        config: model config: backend, queries and keys at a time, window.

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


def ring_pieces(config: LlamaConfig):
    """What computes the products of a ring by `config.attention`.

    Args:
        config: model config: backend, queries and keys at a time, window.

    Returns:
        `pieces` of `rope_jax.model.ring.ring_attention`.

    Raises:
        InputError: if that backend has no window there and the model has one.
    """
    if config.attention == "cudnn":
        return CudnnPieces(config.sliding_window)
    if config.attention == "splash":
        if config.sliding_window is not None:
            # Its mask is fixed while compiling; how far keys are from a device's queries changes as they go around.
            raise InputError(
                f"config.model.attention is 'splash', which has no sliding window (the model's is "
                f"{config.sliding_window}) with config.mesh.context: set config.model.attention to 'cpu', or "
                "config.mesh.context to 1"
            )
        return SplashPieces()
    return BlockPieces(config.attention_chunk, config.sliding_window)


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
