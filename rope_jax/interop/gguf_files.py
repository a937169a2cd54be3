"""GGUF, the format of llama.cpp: what a file says about rotary positions.

llama.cpp drops `longrope` factors for LLaMA without an error. What it reads is a tensor `rope_freqs.weight`, float32
``[D/2]``, by which it divides the frequency of each pair at all lengths, as for LLaMA-3.1.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from rope_jax.errors import InputError

FACTORS = "rope_freqs.weight"

# Hugging Face's `model_type` -> llama.cpp's architecture. Of these only llama's graph reads `rope_freqs.weight`; it
# also adds biases to q, k and v where a file has them, which makes a Qwen2 a llama.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "llama", "qwen3": "qwen3"}
READS_FACTORS = ("llama",)

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


def import_gguf() -> Any:
    """The package of llama.cpp's authors, which is an optional dependency."""
    try:
        import gguf
    except ImportError:
        raise InputError("GGUF needs the package gguf: pip install -e '.[gguf]'") from None
    return gguf


def open_gguf(file: Path) -> Any:
    """A `gguf.GGUFReader` of a file; `InputError` if it is absent or not a complete GGUF file."""
    gguf = import_gguf()
    if not file.is_file():
        raise InputError(f"{file} is no file: give a .gguf file")
    try:
        return gguf.GGUFReader(file)
    # The reader indexes and decodes what the file claims; a damaged one fails in any of these ways.
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(f"{file} is no complete GGUF file ({error}): download or convert it again") from None


def read_gguf_rope(file: Path) -> GgufRope:
    """Reads what a GGUF file says about rotary positions, and no weight."""
    reader = open_gguf(file)

    def value(key: str, default: Any = None) -> Any:
        field = reader.get_field(key)
        if field is None and default is None:
            raise InputError(f"{file} has no {key}: it is no language model, or not complete")
        return default if field is None else field.contents()

    name = value("general.architecture")
    heads, width = value(f"{name}.attention.head_count"), value(f"{name}.embedding_length")
    tensor = next((tensor for tensor in reader.tensors if tensor.name == FACTORS), None)
    return GgufRope(
        architecture=name,
        base=float(value(f"{name}.rope.freq_base", 10000.0)),
        dimensions=int(value(f"{name}.rope.dimension_count", 0)) or width // heads,
        context=int(value(f"{name}.context_length")),
        factors=None if tensor is None else np.array(tensor.data, np.float32),
        attention_factor=float(value(f"{name}.{ATTENTION_FACTOR}", 1.0)),
        scaling=tuple(key for key in SCALING_KEYS if reader.get_field(f"{name}.{key}")),
        splits=int(value("split.count", 1)),
    )
