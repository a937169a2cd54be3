"""GGUF, the format of llama.cpp, with a scale vector in it.

llama.cpp drops `longrope` factors for LLaMA without an error. What it reads is a tensor `rope_freqs.weight`, float32
`[D/2]`, by which it divides each pair's frequency at all lengths, as for LLaMA-3.1. So that tensor is written, either
beside the tensors of a file that exists (quantised or not) or in a conversion of a whole Hugging Face folder, and no
scaling type is set.
"""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from rope_jax.errors import InputError
from rope_jax.interop.gguf_vocabulary import add_vocabulary
from rope_jax.interop.model_folder import inspect
from rope_jax.interop.new_folder import check_space, counter
from rope_jax.interop.tensor_files import DTYPES
from rope_jax.interop.weights import cast, fold_attention_factor, folding_rows
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector

FACTORS = "rope_freqs.weight"

# Hugging Face's `model_type` -> llama.cpp's architecture. Of these only llama's graph reads `rope_freqs.weight`; it
# also adds biases to q, k and v where a file has them, which makes a Qwen2 a llama.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "llama", "qwen3": "qwen3"}
READS_FACTORS = ("llama",)

# What tells llama.cpp of other scalings; the factors hold all of it.
_SCALING_KEYS = (
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
        dimensions: dimensions that turn, D.
        context: tokens that the model is good for.
        factors: float32 `[D/2]` of `rope_freqs.weight`, None if there is no such tensor.
        attention_factor: on cos and sin.
        scaling: names of the keys that ask for a further scaling.
    """

    architecture: str
    base: float
    dimensions: int
    context: int
    factors: np.ndarray | None
    attention_factor: float
    scaling: tuple[str, ...]


def read_gguf_rope(file: str | Path) -> GgufRope:
    """Reads what a GGUF file says about rotary positions, and no weight.

    Args:
        file: GGUF file.

    Returns:
        What it says.

    Raises:
        InputError: naming the file, if it is no GGUF file or lacks a key.
    """
    reader = _open(Path(file))
    architecture = _value(reader, file, "general.architecture")
    tensor = next((tensor for tensor in reader.tensors if tensor.name == FACTORS), None)
    heads = _value(reader, file, f"{architecture}.attention.head_count")
    width = _value(reader, file, f"{architecture}.embedding_length")
    attention = reader.get_field(f"{architecture}.rope.scaling.attn_factor")
    dimensions = reader.get_field(f"{architecture}.rope.dimension_count")
    base = reader.get_field(f"{architecture}.rope.freq_base")
    scaling = [key for key in _SCALING_KEYS if key != "rope.scaling.attn_factor"]
    return GgufRope(
        architecture=architecture,
        base=float(base.contents()) if base else 10000.0,
        dimensions=int(dimensions.contents()) if dimensions else width // heads,
        context=int(_value(reader, file, f"{architecture}.context_length")),
        factors=None if tensor is None else np.array(tensor.data, np.float32),
        attention_factor=float(attention.contents()) if attention else 1.0,
        scaling=tuple(key for key in scaling if reader.get_field(f"{architecture}.{key}")),
    )


def check_gguf(config: LlamaConfig, rope: ScaleVector, context: int) -> None:
    """Checks, before anything is computed or written, that llama.cpp can compute a model with a scale vector.

    Args:
        config: model shape.
        rope: scale vector.
        context: tokens that it is to be good for.

    Raises:
        InputError: for a missing package, an architecture that has no place for the vector, or a vector per layer.
    """
    _gguf()
    kind, factors, pairs = config.architecture, np.asarray(rope.factors), config.head_dim // 2
    if kind not in ARCHITECTURES:
        raise InputError(f"a {kind!r} model cannot be written as GGUF: use one of {', '.join(ARCHITECTURES)}")
    if factors.shape != (pairs,):
        raise InputError(
            f"the factors have shape {list(factors.shape)}, and GGUF holds one of {pairs} for all: export one vector "
            "for the whole model"
        )
    if ARCHITECTURES[kind] not in READS_FACTORS and not np.all(factors == 1):
        raise InputError(
            f"llama.cpp reads no scale vector for a {kind} model: its GGUF would turn at the old frequencies; leave "
            "'gguf' out of config.export.formats and serve the Hugging Face folder"
        )
    if config.sliding_window is not None and config.sliding_window < context:
        raise InputError(
            f"this model attends to {config.sliding_window} tokens, and llama.cpp's {ARCHITECTURES[kind]} to all "
            f"{context}: serve the Hugging Face folder"
        )


def write_gguf(
    target: str | Path,
    folder: str | Path,
    rope: ScaleVector,
    *,
    context: int,
    provenance: Mapping,
    dtype: str | None = None,
    vocabulary: bool = True,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Converts a Hugging Face folder, one tensor in memory at a time.

    An attention factor is folded into the weights. Norms and biases are float32, as llama.cpp expects.

    Args:
        target: file to create; it appears whole or not at all.
        folder: model folder.
        rope: scale vector to serve it under, factors `[D/2]`; that of the folder's own config is not applied on top.
        context: tokens that the model is good for.
        provenance: what the scale vector was made from; JSON-serialisable.
        dtype: of the matrices; None keeps that of each.
        vocabulary: whether the tokenizer goes in too; without it the file takes token ids only.
        overwrite: replace a file that is already there.
        progress: called with the tensor bytes written so far and in all.

    Raises:
        InputError: naming the folder, file or argument, and the fix. Nothing is left behind.
    """
    gguf = _gguf()
    target, folder = Path(os.path.abspath(target)), Path(folder)
    known, tensors = inspect(folder)
    config = known.config
    check_gguf(config, rope, context)
    if dtype is not None and dtype not in ("float32", "float16", "bfloat16"):
        raise InputError(f"config.export.dtype is {dtype!r}: use 'float32', 'float16' or 'bfloat16'")
    architecture = ARCHITECTURES[config.architecture]
    names = gguf.get_tensor_name_map(
        next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), config.num_layers
    )
    folded = {name for row in folding_rows(config) for name in row.names(config)}
    planned = []
    for name, tensor in tensors.items():
        new_name = names.get_name(name, (".weight", ".bias"))
        kind = np.dtype(np.float32) if len(tensor.shape) == 1 else _dtype(dtype or DTYPES[tensor.dtype].name)
        planned.append((new_name, kind, tensor))

    def fill(place: Path):
        writer = gguf.GGUFWriter(place, architecture)
        writer.add_type("model")
        writer.add_name(target.stem)
        _add_shape(writer, config, context)
        _add_provenance(writer, provenance)
        matrices = [kind.name for _, kind, tensor in planned if len(tensor.shape) > 1]
        writer.add_file_type(_file_type(gguf, max(matrices, key=matrices.count)))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        if vocabulary:
            add_vocabulary(writer, folder, config.vocab_size)
        else:
            writer.add_tokenizer_model("no_vocab")
        factors = _factors(rope)
        if architecture in READS_FACTORS and not np.all(factors == 1):
            writer.add_tensor_info(FACTORS, factors.shape, factors.dtype, factors.nbytes)
        else:
            factors = None
        for name, kind, tensor in planned:
            size = int(np.prod(tensor.shape)) * kind.itemsize
            writer.add_tensor_info(name, tensor.shape, kind, size, raw_dtype=_ggml_type(gguf, kind))
        _write_header(writer)
        if factors is not None:
            writer.write_tensor_data(factors)
        advance = counter(need, progress)
        for name, kind, tensor in planned:
            value = tensor.read()
            if tensor.name in folded:
                value = fold_attention_factor(value, float(rope.attention_factor))
            if architecture == "llama":
                value = _interleaved(name, value, config)
            value = np.ascontiguousarray(cast(value, kind, tensor.name))
            writer.write_tensor_data(value.reshape(-1).view(np.uint8))
            advance(value.nbytes)
        writer.close()

    need = sum(int(np.prod(tensor.shape)) * kind.itemsize for _, kind, tensor in planned)
    _write_atomically(target, overwrite, need, fill)


def add_factors(
    target: str | Path,
    existing: str | Path,
    rope: ScaleVector,
    *,
    base: float,
    context: int,
    provenance: Mapping,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Copies a GGUF file and puts a scale vector in; other tensors, quantised or not, stay equal to the byte.

    An attention factor goes into the key that llama.cpp multiplies cos and sin by, since quantised weights cannot
    take it up.

    Args:
        target: file to create; it appears whole or not at all.
        existing: GGUF file of the same model.
        rope: scale vector relative to the frequencies of the base, factors `[D/2]`.
        base: rotary base of the model that the vector was made for.
        context: tokens that the model is now good for.
        provenance: what the scale vector was made from; JSON-serialisable.
        overwrite: replace a file that is already there.
        progress: called with the tensor bytes written so far and in all.

    Raises:
        InputError: naming the file and the fix, if it cannot be read, is of another model, or is one of several
            files. Nothing is left behind.
    """
    gguf = _gguf()
    target, existing = Path(os.path.abspath(target)), Path(existing)
    check_extendable(existing, rope, base)
    reader = _open(existing)
    architecture = _value(reader, existing, "general.architecture")
    factors, attention_factor = _factors(rope), float(rope.attention_factor)
    kept = [tensor for tensor in reader.tensors if tensor.name != FACTORS]
    left_out = {"general.architecture", *(f"{architecture}.{key}" for key in _SCALING_KEYS)}
    length = f"{architecture}.context_length"

    def fill(place: Path):
        writer = gguf.GGUFWriter(place, architecture, endianess=reader.endianess)
        for key, field in reader.fields.items():
            if key in left_out or key.startswith(("GGUF.", "rope_jax.")):
                continue
            if key == length:
                writer.add_context_length(context)
                continue
            kind = field.types[0]
            element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            value = field.contents()
            if element is not None and not value:
                continue  # an empty array has no element type to write
            writer.add_key_value(key, value, kind, sub_type=element)
            if key == "general.alignment":
                writer.data_alignment = int(value)
        if attention_factor != 1:
            writer.add_rope_scaling_attn_factors(attention_factor)
        _add_provenance(writer, provenance)
        writer.add_tensor_info(FACTORS, factors.shape, factors.dtype, factors.nbytes)
        for tensor in kept:
            writer.add_tensor_info(
                tensor.name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, tensor.tensor_type
            )
        _write_header(writer)
        writer.write_tensor_data(factors)
        advance = counter(sum(tensor.data.nbytes for tensor in kept), progress)
        for tensor in kept:
            writer.write_tensor_data(tensor.data, tensor_endianess=reader.endianess)
            advance(tensor.data.nbytes)
        writer.close()

    _write_atomically(target, overwrite, existing.stat().st_size, fill)


def check_extendable(existing: str | Path, rope: ScaleVector, base: float) -> None:
    """Checks that a GGUF file can take a scale vector.

    Args:
        existing: GGUF file.
        rope: scale vector.
        base: rotary base of the model that the vector was made for.

    Raises:
        InputError: naming the file and the fix.
    """
    existing = Path(existing)
    found = read_gguf_rope(existing)
    splits = _open(existing).get_field("split.count")
    if splits and int(splits.contents()) > 1:
        raise InputError(f"{existing} is one of several files: join them first (`llama-gguf-split --merge`)")
    if found.architecture not in READS_FACTORS:
        raise InputError(
            f"{existing} is a {found.architecture} model, for which llama.cpp reads no scale vector: only "
            f"{', '.join(READS_FACTORS)} can be extended"
        )
    # GGUF keeps the base as float32.
    if np.float32(found.base) != np.float32(base):
        raise InputError(f"{existing} has rotary base {found.base:g} where the model has {base:g}: they are two models")
    if np.asarray(rope.factors).shape != (found.dimensions // 2,):
        raise InputError(
            f"{existing} turns {found.dimensions} dimensions, but the factors have shape "
            f"{list(np.shape(rope.factors))}: they are of two models, or differ from layer to layer"
        )


def _gguf():
    try:
        import gguf
    except ImportError:
        raise InputError("writing GGUF needs the package gguf: pip install -e '.[gguf]'") from None
    return gguf


def _open(file: Path):
    gguf = _gguf()
    if not file.is_file():
        raise InputError(f"{file} is no file: give a .gguf file")
    try:
        return gguf.GGUFReader(file)
    # The reader indexes and decodes what the file claims; a damaged one fails in any of these ways.
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(f"{file} is no complete GGUF file ({error}): download or convert it again") from None


def _value(reader, file, key):
    field = reader.get_field(key)
    if field is None:
        raise InputError(f"{file} has no {key}: it is no language model, or not complete")
    return field.contents()


def _add_shape(writer, config: LlamaConfig, context: int):
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)


def _add_provenance(writer, provenance: Mapping):
    writer.add_string("rope_jax.provenance", json.dumps(dict(provenance)))


def _write_header(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _interleaved(name: str, value: np.ndarray, config: LlamaConfig) -> np.ndarray:
    """Hugging Face turns pairs (x[i], x[i + D/2]), and llama.cpp's llama (x[2i], x[2i+1]): the rows of q and k move."""
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return value
    return value.reshape(heads, 2, config.head_dim // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def _factors(rope: ScaleVector) -> np.ndarray:
    factors = np.ascontiguousarray(rope.factors, np.float32)
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise InputError("rope.factors holds an entry that is not a positive finite number")
    return factors


def _dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def _ggml_type(gguf, kind: np.dtype):
    types = gguf.GGMLQuantizationType
    return {"float32": types.F32, "float16": types.F16, "bfloat16": types.BF16}[kind.name]


def _file_type(gguf, name: str):
    types = gguf.LlamaFileType
    return {"float32": types.ALL_F32, "float16": types.MOSTLY_F16, "bfloat16": types.MOSTLY_BF16}[name]


def _write_atomically(target: Path, overwrite: bool, need: int, fill: Callable[[Path], None]):
    if target.exists() and not overwrite:
        raise InputError(f"{target} already exists: give another name, or ask to overwrite it")
    place = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # What a killed export left behind is as large as the model.
        for unfinished in target.parent.glob(f".{target.name}.????????.new"):
            unfinished.unlink(missing_ok=True)
        check_space(target, need)
        fill(place)
        place.replace(target)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error}): check the place and its free space") from error
    finally:
        place.unlink(missing_ok=True)
