"""A scale vector in a GGUF file: a converted Hugging Face folder, or a copy of a GGUF file, quantised or not.

The vector is written as the tensor `rope_freqs.weight`, or as another rotary base where llama.cpp reads no such tensor,
and no scaling type is set.
"""

import json
import math
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rope_jax.errors import InputError
from rope_jax.gguf_reader import GgufFile, import_gguf, is_gguf, read_gguf
from rope_jax.interop import gguf_model
from rope_jax.interop.arrays import cast
from rope_jax.interop.atomic import check_space, check_target, counter, write_atomically
from rope_jax.interop.gguf_files import (
    ARCHITECTURES,
    ATTENTION_FACTOR,
    FACTORS,
    PROVENANCE_KEY,
    READS_FACTORS,
    SCALING_KEYS,
    gguf_rope,
)
from rope_jax.interop.gguf_vocabulary import add_vocabulary
from rope_jax.interop.hf_keys import BASE_KEY
from rope_jax.interop.model_folder import inspect
from rope_jax.interop.native_rope import rotary_base
from rope_jax.interop.tensor_files import DTYPES
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector


def check_gguf(config: LlamaConfig, rope: ScaleVector, context: int) -> None:
    """Checks, before anything is computed or written, that llama.cpp can compute a model with a scale vector.

    Raises:
        InputError: for a missing package, an architecture that has no place for the vector, or a vector per layer.
    """
    import_gguf()
    kind, factors, pairs = config.architecture, np.asarray(rope.factors), config.head_dim // 2
    if kind not in ARCHITECTURES:
        raise InputError(f"a {kind!r} model cannot be written as GGUF: use one of {', '.join(ARCHITECTURES)}")
    if factors.shape != (pairs,):
        raise InputError(
            f"the factors of `rope` have shape {list(factors.shape)}, and GGUF holds one vector of {pairs} for all "
            "layers: export one vector for the whole model",
            field="rope",
        )
    _stored(rope, config.rope_base, ARCHITECTURES[kind])
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

    An attention factor goes into the key by which llama.cpp multiplies cos and sin. Norms and biases are float32, as
    llama.cpp expects.

    Args:
        target: file to create; it appears whole or not at all.
        folder: model folder.
        rope: the whole scale vector, factors ``[D/2]``, which replaces that of the folder's config.
        context: extended context, tokens.
        provenance: what the scale vector was made from; JSON-serialisable.
        dtype: of the matrices; None keeps that of each.
        vocabulary: whether the tokenizer goes in too; without it the file takes token ids only.
        overwrite: replace a file that exists.
        progress: called with the tensor bytes written so far and in all.

    Raises:
        InputError: naming the folder, file or argument, and the fix. Nothing remains then.
    """
    gguf = import_gguf()
    target, folder = Path(os.path.abspath(target)), Path(folder)
    if is_gguf(folder):
        raise InputError(f"`folder` {folder} is a GGUF file already: copy it with `add_factors`")
    known, tensors = inspect(folder)
    config = known.config
    check_gguf(config, rope, context)
    # GGML and safetensors have the same names of these dtypes.
    kinds = {kept.name: kind for kind, kept in DTYPES.items()}
    if dtype is not None and dtype not in kinds:
        raise InputError(f"`dtype` is {dtype!r}: use {', '.join(map(repr, kinds))}")
    check_target(target, overwrite)
    architecture = ARCHITECTURES[config.architecture]
    base, factors = _stored(rope, config.rope_base, architecture)
    names = gguf.get_tensor_name_map(
        next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), config.num_layers
    )
    planned = []
    for name, tensor in tensors.items():
        kind = "F32" if len(tensor.shape) == 1 else kinds[dtype] if dtype else tensor.dtype
        size = math.prod(tensor.shape) * DTYPES[kind].itemsize
        new_name = names.get_name(name, (".weight", ".bias"))
        planned.append((new_name, tensor.shape, DTYPES[kind], size, gguf.GGMLQuantizationType[kind]))
    mostly = statistics.mode(kind.name for _, shape, _, _, kind in planned if len(shape) > 1)

    def values() -> Iterator[np.ndarray]:
        for (name, tensor), (new_name, _, kept, _, _) in zip(tensors.items(), planned):
            value = tensor.read()
            if architecture == "llama":
                value = _interleaved(new_name, value, config)
            yield np.ascontiguousarray(cast(value, kept, name)).reshape(-1).view(np.uint8)

    def write(place: Path) -> None:
        writer = gguf.GGUFWriter(place, architecture)
        writer.add_type("model")
        writer.add_name(target.stem)
        _add_shape(writer, config, context)
        writer.add_rope_freq_base(base)
        writer.add_file_type(gguf.LlamaFileType["ALL_F32" if mostly == "F32" else f"MOSTLY_{mostly}"])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        if rope.attention_factor != 1:
            writer.add_rope_scaling_attn_factors(float(rope.attention_factor))
        if vocabulary:
            add_vocabulary(writer, folder, config.vocab_size)
        else:
            writer.add_tokenizer_model("no_vocab")
        recorded = _recorded(provenance, config.rope_base, base)
        _write_content(writer, recorded, factors, planned, values(), progress=progress)

    check_space(target, sum(size for _, _, _, size, _ in planned))
    write_atomically(target, write)


def check_extendable(existing: Path, rope: ScaleVector, base: float) -> None:
    """Checks that a GGUF file can take a scale vector that was made for a model of this rotary base.

    Raises:
        InputError: naming the file and the fix, if it is of another model, or is one of several files.
    """
    _check_extendable(read_gguf(existing), rope, base)


def _check_extendable(file: GgufFile, rope: ScaleVector, base: float) -> None:
    existing, found = file.path, gguf_rope(file)
    if found.splits > 1:
        raise InputError(f"{existing} is one of several files: join them first (`llama-gguf-split --merge`)")
    if found.architecture not in gguf_model.ARCHITECTURES:
        raise InputError(
            f"{existing} is a {found.architecture} model: only {', '.join(gguf_model.ARCHITECTURES)} can be extended"
        )
    # GGUF keeps the base as float32.
    if np.float32(found.base) != np.float32(base):
        raise InputError(f"{existing} has rotary base {found.base:g} where the model has {base:g}: they are two models")
    if np.asarray(rope.factors).shape != (found.dimensions // 2,):
        raise InputError(
            f"{existing} rotates {found.dimensions} dimensions, but the factors have shape "
            f"{list(np.shape(rope.factors))}: they are of two models, or differ from layer to layer"
        )
    _stored(rope, base, found.architecture)


def add_factors(
    target: str | Path,
    existing: Path,
    rope: ScaleVector,
    *,
    base: float,
    context: int,
    provenance: Mapping,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Copies a GGUF file under a scale vector; other tensors, quantised or not, stay equal to the byte.

    Args:
        target: file to create; it appears whole or not at all.
        existing: GGUF file of the same model.
        rope: scale vector relative to the frequencies of the base, factors ``[D/2]``.
        base: rotary base of the model that the vector was made for.
        context, provenance, overwrite, progress: as of `write_gguf`.

    Raises:
        InputError: naming the file and the fix. Nothing remains then.
    """
    gguf = import_gguf()
    target, file = Path(os.path.abspath(target)), read_gguf(existing)
    _check_extendable(file, rope, base)
    check_target(target, overwrite)
    architecture = file.values["general.architecture"]
    attention_factor = float(rope.attention_factor)
    raised, factors = _stored(rope, base, architecture)
    kept = [tensor for tensor in file.tensors.values() if tensor.name != FACTORS]
    tensors = [
        (t.name, (*t.shape[:-1], t.row_bytes), np.dtype(np.uint8), t.bytes, gguf.GGMLQuantizationType(t.kind))
        for t in kept
    ]
    replaced = {f"{architecture}.{key}" for key in (*SCALING_KEYS, ATTENTION_FACTOR, "context_length")}
    if raised != base:
        replaced.add(f"{architecture}.rope.freq_base")
    endianess = gguf.GGUFEndian.BIG if file.big_endian else gguf.GGUFEndian.LITTLE

    def write(place: Path) -> None:
        writer = gguf.GGUFWriter(place, architecture, endianess=endianess)
        writer.data_alignment = file.alignment
        for key, value in file.values.items():
            if key in replaced or key == "general.architecture" or key.startswith("rope_jax."):
                continue
            kind, *element = map(gguf.GGUFValueType, file.types[key])
            if element and not value:
                continue  # an empty array has no element type to write
            writer.add_key_value(key, value, kind, sub_type=element[0] if element else None)
        writer.add_context_length(context)
        if raised != base:
            writer.add_rope_freq_base(raised)
        if attention_factor != 1:
            writer.add_rope_scaling_attn_factors(attention_factor)
        values = (file.data(tensor) for tensor in kept)
        recorded = _recorded(provenance, base, raised)
        _write_content(writer, recorded, factors, tensors, values, endianess=endianess, progress=progress)

    check_space(target, existing.stat().st_size)
    write_atomically(target, write)


def _stored(rope: ScaleVector, base: float, architecture: str) -> tuple[float, np.ndarray | None]:
    """The rotary base and the factors from which llama.cpp computes a vector of a base; factors None for no tensor."""
    factors = np.ascontiguousarray(rope.factors, np.float32)
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise InputError("the factors of `rope` hold an entry that is not a positive finite number", field="rope")
    if np.all(factors == 1):
        return base, None
    if architecture in READS_FACTORS:
        return base, factors
    raised = rotary_base(factors, base)
    if raised is None:
        raise InputError(
            f"llama.cpp reads no scale vector for a {architecture} model, and no other rotary base has the frequencies "
            "of `rope`: serve the Hugging Face folder, or take a method that changes the base, such as ntk",
            field="rope",
        )
    return raised, None


def _recorded(provenance: Mapping, base: float, written: float) -> dict:
    """The provenance, with the base that the vector is relative to where another one is written."""
    return {**provenance, **({} if written == base else {BASE_KEY: base})}


def _write_content(
    writer: Any,
    provenance: Mapping,
    factors: np.ndarray | None,
    tensors: list[tuple],
    values: Iterable[np.ndarray],
    *,
    endianess: Any = None,
    progress: Callable[[int, int], object] | None,
) -> None:
    """Writes a file whose metadata is complete but for the provenance; `factors` None leaves out `rope_freqs.weight`.

    `tensors` are the arguments of `GGUFWriter.add_tensor_info` (name, shape, dtype, bytes, GGML's type) for the other
    tensors. Each of their `values` is asked for when it is written; `endianess` None is this machine's byte order.
    """
    writer.add_string(PROVENANCE_KEY, json.dumps(dict(provenance)))
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


def _add_shape(writer: Any, config: LlamaConfig, context: int) -> None:
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


def _interleaved(name: str, value: np.ndarray, config: LlamaConfig) -> np.ndarray:
    """Reorders the rows of q and k: Hugging Face rotates (x[i], x[i + D/2]), llama.cpp's llama (x[2i], x[2i+1])."""
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return value
    return value.reshape(heads, 2, config.head_dim // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
