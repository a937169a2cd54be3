"""A Hugging Face folder as a GGUF file, under a scale vector."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rope_jax.errors import InputError
from rope_jax.interop.arrays import cast
from rope_jax.interop.atomic import check_space, check_target, write_atomically
from rope_jax.interop.gguf_files import (
    ARCHITECTURES,
    READS_FACTORS,
    import_gguf,
    stored_factors,
    write_content,
)
from rope_jax.interop.gguf_vocabulary import add_vocabulary
from rope_jax.interop.model_folder import inspect
from rope_jax.interop.tensor_files import DTYPES
from rope_jax.interop.weights import fold_attention_factor, folding_rows
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector

# NumPy's name of a dtype -> the dtype, and GGML's names of it for a tensor and for a file that mostly holds it.
_DTYPES = {
    dtype.name: (dtype, tensor, file)
    for dtype, tensor, file in (
        (DTYPES["F32"], "F32", "ALL_F32"),
        (DTYPES["F16"], "F16", "MOSTLY_F16"),
        (DTYPES["BF16"], "BF16", "MOSTLY_BF16"),
    )
}


def check_gguf(config: LlamaConfig, rope: ScaleVector, context: int) -> None:
    """Checks, before anything is computed or written, that llama.cpp can compute a model with a scale vector.

    Args:
        config: model shape.
        rope: scale vector.
        context: extended context, tokens.

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
    if ARCHITECTURES[kind] not in READS_FACTORS and not np.all(factors == 1):
        raise InputError(
            f"llama.cpp reads no scale vector for a {kind} model, so its GGUF file would keep the old frequencies: "
            "serve the Hugging Face folder",
            field="rope",
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
    known, tensors = inspect(folder)
    config = known.config
    check_gguf(config, rope, context)
    if dtype is not None and dtype not in _DTYPES:
        raise InputError(f"`dtype` is {dtype!r}: use {', '.join(map(repr, _DTYPES))}", field="dtype")
    check_target(target, overwrite)
    architecture, factors = ARCHITECTURES[config.architecture], stored_factors(rope)
    names = gguf.get_tensor_name_map(
        next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), config.num_layers
    )
    planned = []
    for name, tensor in tensors.items():
        kind = "float32" if len(tensor.shape) == 1 else dtype or DTYPES[tensor.dtype].name
        kept, ggml, _ = _DTYPES[kind]
        size = int(np.prod(tensor.shape)) * kept.itemsize
        new_name = names.get_name(name, (".weight", ".bias"))
        planned.append((new_name, tensor.shape, kept, size, gguf.GGMLQuantizationType[ggml]))
    matrices = [kept.name for _, shape, kept, _, _ in planned if len(shape) > 1]
    file_type = _DTYPES[max(matrices, key=matrices.count)][2]
    folded = {name for row in folding_rows(config) for name in row.names(config)}

    def values() -> Iterator[np.ndarray]:
        for (name, tensor), (new_name, _, kept, _, _) in zip(tensors.items(), planned):
            value = tensor.read()
            if name in folded:
                value = fold_attention_factor(value, float(rope.attention_factor))
            if architecture == "llama":
                value = _interleaved(new_name, value, config)
            yield np.ascontiguousarray(cast(value, kept, name)).reshape(-1).view(np.uint8)

    def write(place: Path) -> None:
        writer = gguf.GGUFWriter(place, architecture)
        writer.add_type("model")
        writer.add_name(target.stem)
        _add_shape(writer, config, context)
        writer.add_file_type(gguf.LlamaFileType[file_type])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        if vocabulary:
            add_vocabulary(writer, folder, config.vocab_size)
        else:
            writer.add_tokenizer_model("no_vocab")
        served = factors if architecture in READS_FACTORS and not np.all(factors == 1) else None
        write_content(writer, provenance, served, planned, values(), progress=progress)

    check_space(target, sum(size for _, _, _, size, _ in planned))
    write_atomically(target, write)


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
    writer.add_rope_freq_base(config.rope_base)


def _interleaved(name: str, value: np.ndarray, config: LlamaConfig) -> np.ndarray:
    """Reorders the rows of q and k: Hugging Face rotates (x[i], x[i + D/2]), llama.cpp's llama (x[2i], x[2i+1])."""
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return value
    return value.reshape(heads, 2, config.head_dim // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
