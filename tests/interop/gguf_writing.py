"""GGUF files as llama.cpp's own conversion writes them, by the gguf package and none of our code."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

# Bytes of a block that are float16 scales, by type whose quantisation the package does not have.
SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def write_reference(file: Path, folder: Path, architecture: str, kind: str = "F32", **keys) -> Path:
    """Converts a model folder.

    Args:
        file: GGUF file to create.
        folder: Hugging Face folder of float32 tensors.
        architecture: llama.cpp's name.
        kind: GGML's name of the type of matrices; of `SCALES`, their blocks are random.
        **keys: further metadata: `rope__scaling__factor` is of the architecture, `general__name` is not. A value None
            removes the key; `factors` is the tensor `rope_freqs.weight`.
    """
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(file, architecture)
    factors = keys.pop("factors", None)
    values = {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention__head_count": heads,
        "attention__head_count_kv": kv_heads,
        "attention__key_length": head_dim,
        "attention__value_length": head_dim,
        "attention__layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope__dimension_count": head_dim,
        "rope__freq_base": float(config["rope_parameters"]["rope_theta"]),
    }
    for name, value in (values | keys).items():
        if value is not None:
            _add(writer, name.replace("__", "."), architecture, value)
    if "tokenizer__ggml__model" not in keys:
        writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(
        next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture),
        config["num_hidden_layers"],
    )
    random = np.random.default_rng(0)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(factors, np.float32))
    for name, value in load_file(folder / "model.safetensors").items():
        new_name = names.get_name(name, (".weight", ".bias"))
        rotated = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2])
        if architecture == "llama" and rotated:
            # As `LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py does.
            value = value.reshape(rotated, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        if value.ndim == 1 or kind == "F32":
            writer.add_tensor(new_name, np.ascontiguousarray(value, np.float32))
            continue
        number = gguf.GGMLQuantizationType[kind]
        if kind in SCALES:
            block, size = gguf.GGML_QUANT_SIZES[number]
            data = random.integers(0, 256, (value.shape[0], value.shape[1] // block, size), np.uint8)
            for place in SCALES[kind]:
                scale = random.uniform(1e-4, 1e-3, data.shape[:2]).astype(np.float16)
                data[..., place : place + 2] = scale[..., None].view(np.uint8)
            data = data.reshape(value.shape[0], -1)
        else:
            data = gguf.quants.quantize(np.ascontiguousarray(value), number)
        writer.add_tensor(new_name, data, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add(writer, name, architecture, value):
    first = name.split(".")[0]
    key = name if first in ("general", "tokenizer", "rope_jax", "split") else f"{architecture}.{name}"
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING", list: "ARRAY"}
    writer.add_key_value(key, value, gguf.GGUFValueType[kinds[type(value)]])
