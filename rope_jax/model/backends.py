"""Causal self-attention of packed documents by the backend that a model's config names.

`cpu` is plain JAX and runs anywhere; `cudnn` is the flash attention of NVIDIA's library; `splash` is JAX's own kernel
for TPUs. All take grouped query heads, a sliding window and documents. An unavailable backend is an error; there is no
silent fallback.
"""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

from rope_jax.errors import InputError
from rope_jax.model.arrays import Key, Query, Segments
from rope_jax.model.attention import causal_attention
from rope_jax.model.config import LlamaConfig
from rope_jax.model.kernels import cudnn_attention, splash_attention, splash_piece
from rope_jax.model.remat import ATTENTION


def attend(query: Query, key: Key, value: Key, segment_ids: Segments, config: LlamaConfig) -> Query:
    """Causal self-attention by `config.attention`, in the dtype of `query`."""
    arrays, window = (query, key, value, segment_ids), config.sliding_window
    # Named for checkpointing policies; `cpu` names its output itself, with the sums that go with it.
    if config.attention == "cudnn":
        return checkpoint_name(cudnn_attention(*arrays, window=window), ATTENTION)
    if config.attention == "splash":
        return checkpoint_name(splash_attention(*arrays, window=window), ATTENTION)
    return causal_attention(*arrays, chunk=config.attention_chunk, window=window)


def ring_kernel(config: LlamaConfig) -> Callable | None:
    """The kernel of a ring's forward pass by `config.attention`; its backward pass is plain JAX.

    The gradient of one piece of a softmax is not in the public interface of any kernel. The log of a softmax's sum,
    which the forward pass needs, is in that of 'splash'; that of cuDNN rounds it to 16 bits, so 'cudnn' computes a ring
    in plain JAX.

    Returns:
        `kernel` of `rope_jax.model.ring.Ring`; None for plain JAX.
    """
    if config.attention != "splash":
        return None
    if config.sliding_window is not None:
        raise InputError(
            f"`attention` is 'splash', which has no sliding window (`sliding_window` is {config.sliding_window}) over "
            "sequences that are cut over devices: use 'cpu', or leave sequences whole"
        )
    return splash_piece


def check_backend(config: LlamaConfig) -> None:
    """Raises InputError if this machine lacks the backend that `config` asks for, or if it does not take this model."""

    def require(condition, reason, field="attention"):
        if not condition:
            raise InputError(f"`attention` is '{config.attention}', which {reason}", field=field)

    platform, wanted = jax.default_backend(), {"cudnn": "gpu", "splash": "tpu"}.get(config.attention)
    have = f"needs a {wanted}, and JAX has a {platform} here: 'cpu' runs anywhere"
    require(wanted in (None, platform), have)
    if config.attention != "cudnn":
        return
    require(config.dtype != "float32", "computes in 16 bits: set `dtype` to 'bfloat16'", "dtype")
    device = jax.local_devices()[0]
    capability = str(getattr(device, "compute_capability", ""))
    require("." in capability, f"needs a GPU of NVIDIA, and this is a {device.device_kind}: use 'cpu'")
    # From Hopper on, 9.0, heads may be twice as wide.
    widest = 256 if float(capability) >= 9 else 128
    require(
        config.head_dim % 8 == 0 and config.head_dim <= widest,
        f"takes values of `head_dim` that are multiples of 8 up to {widest} on a {device.device_kind}, and the "
        f"model's is {config.head_dim}: use 'cpu'",
    )
