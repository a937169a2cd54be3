"""Causal self-attention of packed documents by the backend that a model's config names.

`cpu` is plain JAX and runs anywhere. `cudnn` is the flash attention of NVIDIA's library for rows of one document, and
another backend where rows hold several. `pallas` and `splash` are JAX's own kernels, for GPUs and for TPUs. None forms
a mask of T x T. An unavailable backend is an error; there is no silent fallback.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh, Mesh

from rope_jax.errors import InputError
from rope_jax.model.arrays import Key, Query, Segments
from rope_jax.model.attention import causal_attention
from rope_jax.model.config import LlamaConfig
from rope_jax.model.kernels import cudnn_attention, pallas_attention, splash_attention, splash_piece
from rope_jax.model.remat import ATTENTION
from rope_jax.sharding import spec

# Kernels of a platform, the best first; 'cpu' comes after them.
KERNELS = {"gpu": ("cudnn", "pallas"), "tpu": ("splash",)}


def attend(query: Query, key: Key, value: Key, segment_ids: Segments, config: LlamaConfig) -> Query:
    """Causal self-attention of the last T of S tokens by `config.attention`, in the dtype of `query`."""
    window, missing = config.sliding_window, key.shape[1] - query.shape[1]
    plain = partial(causal_attention, chunk=config.attention_chunk, window=window)
    if config.attention == "cpu":
        # Names its output itself, with the sums that go with it.
        return plain(query, key, value, segment_ids)
    # Kernels take as many queries as keys.
    arrays = jnp.pad(query, ((0, 0), (missing, 0), (0, 0), (0, 0))), key, value, segment_ids
    if config.attention == "cudnn":
        packed = plain if _unfit("pallas", config) else pallas_attention
        out = cudnn_attention(*arrays, packed=packed, window=window)
    elif config.attention == "pallas":
        out = pallas_attention(*arrays)
    else:
        out = splash_attention(*arrays, window=window)
    return checkpoint_name(out[:, missing:], ATTENTION)  # for checkpointing policies


def attend_on(config: LlamaConfig, mesh: Mesh | AbstractMesh | None, rows: str) -> Callable:
    """`attend` with arrays spread over a mesh, each device its rows and heads by itself; None for one device.

    `rows` is the logical axis that rows are sharded along, 'batch' or 'rows'; sequences are whole.
    """
    local = partial(attend, config=config)
    if mesh is None or mesh.size == 1:
        return local
    query, key = spec(rows, None, "heads"), spec(rows, None, "kv_heads")
    # Not checked: kernels do not say which of their values vary over which axes.
    return jax.shard_map(local, mesh=mesh, in_specs=(query, key, key, spec(rows)), out_specs=query, check_vma=False)


def ring_kernel(config: LlamaConfig) -> Callable | None:
    """The kernel of a ring's forward pass by `config.attention`; its backward pass is plain JAX.

    The gradient of one piece of a softmax is not in the public interface of any kernel. The log of a softmax's sum,
    which the forward pass needs, is in that of 'splash'; that of cuDNN rounds it to 16 bits, and 'pallas' takes one
    list of documents for queries and keys: on GPUs a ring computes in plain JAX.

    Returns:
        `kernel` of `rope_jax.model.ring.Ring`; None for plain JAX.
    """
    if config.attention != "splash":
        return None
    if config.sliding_window is not None:
        raise _refused(config.attention, _windowed_ring(config))
    return splash_piece


class Device(NamedTuple):
    """What attention is computed on."""

    platform: str  # as JAX names it: 'cpu', 'gpu' or 'tpu'
    kind: str
    capability: float | None = None  # compute capability of a GPU of NVIDIA

    @classmethod
    def here(cls) -> Device:
        """This process's first device."""
        device = jax.local_devices()[0]
        capability = str(getattr(device, "compute_capability", ""))
        return cls(device.platform, device.device_kind, float(capability) if "." in capability else None)


def check_backend(config: LlamaConfig, device: Device | None = None, *, ring: bool = False) -> None:
    """Raises InputError if a device lacks the backend that `config` asks for, or if that does not take this model.

    `device` is by default the one here; with a `ring`, sequences are cut over devices.
    """
    if reason := _refusal(config.attention, config, device or Device.here(), ring):
        raise _refused(config.attention, reason)


def best_backend(config: LlamaConfig, device: Device, *, ring: bool = False) -> str:
    """The fastest backend that takes a model on a device, whatever `config.attention` is."""
    kernels = KERNELS.get(device.platform, ())
    return next((name for name in kernels if not _refusal(name, config, device, ring)), "cpu")


def described_backend(config: LlamaConfig, device: Device, *, ring: bool = False) -> str:
    """The backend that computes a model's attention on a device, and why no better one does."""
    name = config.attention
    best, *_ = *KERNELS.get(device.platform, ()), "cpu"
    said = f"'{name}'"
    if name != best and (reason := _refusal(best, config, device, ring)):
        said += f" instead of '{best}', which {reason}"
    if name == "cudnn":
        reason = _unfit("pallas", config)
        other = f"'cpu' instead of 'pallas', which {reason}" if reason else "'pallas'"
        said += f"; rows of several documents by {other}"
    if ring and device.platform == "gpu" and name != "cpu":
        said = f"'cpu' in training, where sequences are cut over devices; else {said}"
    return said


def _refused(name: str, reason: str) -> InputError:
    return InputError(f"`attention` is '{name}', which {reason}", field="dtype" if "`dtype`" in reason else "attention")


def _refusal(name: str, config: LlamaConfig, device: Device, ring: bool) -> str:
    """Why a backend does not compute a model's attention on a device; empty if it does."""
    if name == "cpu":
        return ""
    if name == "splash" and ring and config.sliding_window is not None:
        return _windowed_ring(config)
    wanted = next(platform for platform, names in KERNELS.items() if name in names)
    if device.platform != wanted:
        return f"needs a {wanted}, and JAX has a {device.platform} here: 'cpu' runs anywhere"
    if wanted == "tpu":
        return ""
    if (device.capability or 0) < 8:
        return f"needs a GPU of NVIDIA, of compute capability 8.0 or later, and this is a {device.kind}: use 'cpu'"
    return _unfit(name, config, device.capability)


def _windowed_ring(config: LlamaConfig) -> str:
    return (
        f"has no sliding window (`sliding_window` is {config.sliding_window}) over sequences that are cut over "
        "devices: use 'cpu', or leave sequences whole"
    )


def _unfit(name: str, config: LlamaConfig, capability: float | None = None) -> str:
    """Why a GPU's kernel does not take a model; empty if it does."""
    if config.dtype == "float32":
        return "computes in 16 bits: set `dtype` to 'bfloat16'"
    if name == "pallas" and config.sliding_window is not None:
        return f"has no sliding window, and the model's is {config.sliding_window}: use 'cudnn' or 'cpu'"
    least, multiple = (8, 8) if name == "cudnn" else (16, 2)
    # From Hopper on, heads of cuDNN may be twice as wide.
    widest = 256 if name == "cudnn" and (capability or 0) >= 9 else 128
    if config.head_dim % multiple or not least <= config.head_dim <= widest:
        return (
            f"takes multiples of {multiple} from {least} to {widest} as `head_dim`, and the model's is "
            f"{config.head_dim}: use 'cpu'"
        )
    return ""
