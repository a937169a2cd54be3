"""GGUF, the format of llama.cpp: what a file says about rotary positions, and how one is written.

llama.cpp drops `longrope` factors for LLaMA without an error. What it reads is a tensor `rope_freqs.weight`, float32
``[D/2]``, by which it divides the frequency of each pair at all lengths, as for LLaMA-3.1. So a scale vector is written
as that tensor, and no scaling type is set.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rope_jax.errors import InputError
from rope_jax.interop.atomic import counter
from rope_jax.rope.embedding import ScaleVector

FACTORS = "rope_freqs.weight"

# Hugging Face's `model_type` -> llama.cpp's architecture. Of these only llama's graph reads `rope_freqs.weight`; it
# also adds biases to q, k and v where a file has them, which makes a Qwen2 a llama.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "llama", "qwen3": "qwen3"}
READS_FACTORS = ("llama",)

# Keys by which llama.cpp scales positions further; the factors hold all of it.
SCALING_KEYS = (
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
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
        architecture: llama.cpp's name of the architecture.
        base: rotary base.
        dimensions: rotated dimensions of a head, D.
        context: context length, tokens.
        factors: float32 ``[D/2]`` of `rope_freqs.weight`; None if there is no such tensor.
        attention_factor: on cos and sin.
        scaling: names of the keys that ask for a further scaling.
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
    """Imports the package of llama.cpp's authors.

    Raises:
        InputError: if it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise InputError("GGUF needs the package gguf: pip install -e '.[gguf]'") from None
    return gguf


def open_gguf(file: Path) -> Any:
    """Opens a GGUF file.

    Args:
        file: GGUF file.

    Returns:
        A `gguf.GGUFReader`.

    Raises:
        InputError: naming the file, if it is absent or not a complete GGUF file.
    """
    gguf = import_gguf()
    if not file.is_file():
        raise InputError(f"{file} is no file: give a .gguf file")
    try:
        return gguf.GGUFReader(file)
    # The reader indexes and decodes what the file claims; a damaged one fails in any of these ways.
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(f"{file} is no complete GGUF file ({error}): download or convert it again") from None


def read_gguf_rope(file: str | Path) -> GgufRope:
    """Reads what a GGUF file says about rotary positions, and no weight.

    Args:
        file: GGUF file.

    Returns:
        What it says.

    Raises:
        InputError: naming the file, if it is no GGUF file or lacks a key.
    """
    reader = open_gguf(Path(file))

    def value(key: str, default: Any = None) -> Any:
        field = reader.get_field(key)
        if field is None and default is None:
            raise InputError(f"{file} has no {key}: it is no language model, or not complete")
        return default if field is None else field.contents()

    name = value("general.architecture")
    heads, width = value(f"{name}.attention.head_count"), value(f"{name}.embedding_length")
    tensor = next((tensor for tensor in reader.tensors if tensor.name == FACTORS), None)
    further = [key for key in SCALING_KEYS if key != "rope.scaling.attn_factor"]
    return GgufRope(
        architecture=name,
        base=float(value(f"{name}.rope.freq_base", 10000.0)),
        dimensions=int(value(f"{name}.rope.dimension_count", 0)) or width // heads,
        context=int(value(f"{name}.context_length")),
        factors=None if tensor is None else np.array(tensor.data, np.float32),
        attention_factor=float(value(f"{name}.rope.scaling.attn_factor", 1.0)),
        scaling=tuple(key for key in further if reader.get_field(f"{name}.{key}")),
        splits=int(value("split.count", 1)),
    )


def stored_factors(rope: ScaleVector) -> np.ndarray:
    """The factors as GGUF stores them.

    Args:
        rope: scale vector.

    Returns:
        float32, contiguous.

    Raises:
        InputError: if an entry is not a positive finite number.
    """
    factors = np.ascontiguousarray(rope.factors, np.float32)
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise InputError("the factors of `rope` hold an entry that is not a positive finite number", field="rope")
    return factors


def write_content(
    writer: Any,
    provenance: Mapping,
    factors: np.ndarray | None,
    tensors: list[tuple],
    values: Iterable[np.ndarray],
    *,
    endianess: Any = None,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Writes a GGUF file whose metadata is complete but for the provenance.

    Args:
        writer: `gguf.GGUFWriter` that has written nothing yet.
        provenance: what the scale vector was made from; JSON-serialisable.
        factors: for `rope_freqs.weight`; None leaves it out.
        tensors: of each other tensor the arguments of `GGUFWriter.add_tensor_info`: name, shape, dtype, bytes, GGML's
            type.
        values: their values, in the same order; each is asked for when it is written.
        endianess: byte order of the values; None is this machine's.
        progress: called with the bytes of `tensors` written so far and in all.
    """
    writer.add_string("rope_jax.provenance", json.dumps(dict(provenance)))
    if factors is not None:
        writer.add_tensor_info(FACTORS, factors.shape, factors.dtype, factors.nbytes)
    for tensor in tensors:
        writer.add_tensor_info(*tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    advance = counter(sum(size for _, _, _, size, _ in tensors), progress)
    for value in values:
        writer.write_tensor_data(value, tensor_endianess=endianess)
        advance(value.nbytes)
    writer.close()
