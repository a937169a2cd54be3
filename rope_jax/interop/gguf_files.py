"""GGUF, the format of llama.cpp: what a file says about rotary positions.

llama.cpp drops `longrope` factors for LLaMA without an error. What it reads is a tensor `rope_freqs.weight`, float32
``[D/2]``, by which it divides the frequency of each pair at all lengths, as for LLaMA-3.1.
"""

import dataclasses
from pathlib import Path

import numpy as np

from rope_jax.errors import InputError
from rope_jax.files import Fields
from rope_jax.gguf_reader import GgufFile, GgufTensor, read_gguf

FACTORS = "rope_freqs.weight"

# Of this package: what a scale vector was made from, as JSON.
PROVENANCE_KEY = "rope_jax.provenance"

# Hugging Face's `model_type` -> llama.cpp's architecture. Every graph reads a rotary base and a factor on cos and sin;
# of these only llama's reads `rope_freqs.weight`. That one also adds biases to q, k and v where a file has them, which
# makes a Qwen2 a llama.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "llama", "qwen3": "qwen3"}
READS_FACTORS = ("llama",)

_FLOAT32 = 0  # GGML's number of it

# The key by which llama.cpp multiplies cos and sin, and those by which it scales positions further than the factors do.
ATTENTION_FACTOR = "rope.scaling.attn_factor"
SCALING_KEYS = (
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.yarn_log_multiplier",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
)


@dataclasses.dataclass(frozen=True)
class GgufRope:
    """What a GGUF file says about rotary positions.

    Attributes:
        architecture: llama.cpp's name of it.
        dimensions: rotated dimensions of a head, D.
        factors: float32 ``[D/2]`` of `rope_freqs.weight`; None if there is no such tensor.
        attention_factor: on cos and sin.
        scaling: keys that ask for a further scaling.
        splits: number of files that the model is split into.
    """

    architecture: str
    base: float
    dimensions: int
    context: int
    factors: np.ndarray | None
    attention_factor: float
    scaling: tuple[str, ...]
    splits: int


def read_gguf_rope(file: Path) -> GgufRope:
    """Reads what a GGUF file says about rotary positions, and no weight."""
    return gguf_rope(read_gguf(file))


def gguf_rope(found: GgufFile) -> GgufRope:
    """What an opened GGUF file says about rotary positions."""
    name, fields = architecture_fields(found)
    width, heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    tensor = found.tensors.get(FACTORS)
    splits = found.values.get("split.count", 1)
    return GgufRope(
        architecture=name,
        base=fields.number("rope.freq_base", 10000.0),
        dimensions=fields.integer("rope.dimension_count", max(width // heads, 1)),
        context=fields.integer("context_length"),
        factors=None if tensor is None else _read_factors(found, tensor),
        attention_factor=fields.number(ATTENTION_FACTOR, 1.0),
        scaling=tuple(key for key in SCALING_KEYS if key in fields.values),
        splits=splits if type(splits) is int else 1,
    )


def architecture_fields(found: GgufFile) -> tuple[str, Fields]:
    """llama.cpp's name of a file's architecture, and the keys of that architecture without its prefix."""
    name = found.values.get("general.architecture")
    if not isinstance(name, str) or not name:
        raise InputError(f"{found.path} has no general.architecture: it is no language model, or not complete")
    prefix = f"{name}."
    values = {key.removeprefix(prefix): value for key, value in found.values.items() if key.startswith(prefix)}
    return name, Fields(found.path, values, prefix)


def _read_factors(found: GgufFile, tensor: GgufTensor) -> np.ndarray:
    if tensor.kind != _FLOAT32 or len(tensor.shape) != 1:
        raise InputError(f"{found.path}: {FACTORS} is not a list of float32 numbers: convert the model again")
    return found.data(tensor).view(">f4" if found.big_endian else "<f4").astype(np.float32)
