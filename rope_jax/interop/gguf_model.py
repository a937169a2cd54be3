"""A model in one GGUF file: its shape, its own scale vector and its tensors, as a Hugging Face folder would have them.

Quantised tensors are dequantised as the `gguf` package does, to float32.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rope_jax.errors import InputError
from rope_jax.files import Fields
from rope_jax.gguf_reader import GgufFile, GgufTensor, import_gguf, read_gguf
from rope_jax.interop.gguf_files import ATTENTION_FACTOR, FACTORS, PROVENANCE_KEY, architecture_fields, gguf_rope
from rope_jax.interop.hf_config import SourceConfig
from rope_jax.interop.hf_keys import BASE_KEY
from rope_jax.interop.tensor_files import DTYPES, StoredTensor
from rope_jax.interop.weights import TABLES
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.checks import check_base
from rope_jax.rope.embedding import ScaleVector, identity
from rope_jax.rope.methods.by_parts import yarn
from rope_jax.rope.methods.explicit import explicit
from rope_jax.rope.methods.interpolation import position_interpolation
from rope_jax.rope.relative import compose, rebased

# llama.cpp's architectures that are read. Mistral is stored as llama, and a Qwen2 may be: llama's graph adds biases.
ARCHITECTURES = ("llama", "qwen2", "qwen3")

# Arguments of the model and of scalings -> keys of the architecture.
_KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_layers": "block_count",
    "num_heads": "attention.head_count",
    "num_kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "context": "context_length",
    "base": "rope.freq_base",
    "extension": "rope.scaling.factor",
    "original": "rope.scaling.original_context_length",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
    "factors": FACTORS,
    "attention_factor": ATTENTION_FACTOR,
}

# Keys of the architecture that are read, or change nothing.
_UNDERSTOOD = {
    *_KEYS.values(),
    *("vocab_size", "attention.value_length", "attention.sliding_window", "rope.dimension_count", "rope.scale_linear"),
    *("rope.scaling.type", "rope.scaling.finetuned", "tensor_data_layout"),
}

# Keys that may only have the value at which they change nothing.
_HARMLESS_VALUES = {
    "attention.causal": True,
    "attention.max_alibi_bias": 0,
    "attention.scale": 0,
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.yarn_attn_factor": 1,
    "rope.scaling.yarn_ext_factor": -1,
    "rope.scaling.yarn_log_multiplier": 0,
    "use_parallel_residual": False,
}

# Token ids of the metadata -> keys of `config.json`.
_IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}

_FLOATS = {0: "F32", 1: "F16", 30: "BF16"}


@dataclasses.dataclass(frozen=True)
class GgufWeight(StoredTensor):
    """A tensor of a GGUF file under Hugging Face's name; `dtype` is that of its numbers here.

    Attributes:
        stored: where it is.
        head_dim: D of a tensor whose rows llama.cpp keeps with the two of each rotated pair together; else 0.
    """

    opened: GgufFile
    stored: GgufTensor
    head_dim: int = 0

    @contextlib.contextmanager
    def rows(self) -> Iterator[Callable[[int, int], np.ndarray]]:
        quants = import_gguf().quants
        data = self.opened.data(self.stored)
        kind = _FLOATS.get(self.stored.kind)

        def read(start: int, stop: int) -> np.ndarray:
            if kind is None:
                values = quants.dequantize(data[start:stop], self.stored.kind)
            elif data.ndim == 1:
                values = data.view(DTYPES[kind])[start:stop]
            else:
                values = data[start:stop].view(DTYPES[kind])
            values = np.asarray(values).astype(DTYPES[self.dtype], copy=False)
            return _halves(values, self.head_dim) if self.head_dim else values

        yield read


def read_gguf_model(file: Path) -> tuple[SourceConfig, dict[str, StoredTensor], list[str]]:
    """Reads everything but the weights.

    Returns:
        What the file says; its tensors by Hugging Face's names, in the order of the file; and the names of tensors
        that no model of these families has.

    Raises:
        InputError: naming the file, the key and the fix, for anything that would be computed differently here.
    """
    opened = read_gguf(file)
    architecture, fields = architecture_fields(opened)
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"{file} is a {architecture!r} model: use one of {', '.join(ARCHITECTURES)} (a Mistral is stored as llama)"
        )
    if opened.big_endian:
        raise InputError(f"{file} is big-endian: convert the model again for this machine")
    if opened.values.get("split.count", 1) != 1:
        raise InputError(f"{file} is one of several files: join them first (`llama-gguf-split --merge`)")
    _check_keys(fields)
    provenance = _provenance(opened)
    config, rope = _model(opened, architecture, fields, provenance)
    names, unknown = _names(opened, architecture, config)
    weights = _weights(opened, names, config.head_dim if architecture == "llama" else 0)
    return SourceConfig(config, rope, provenance, _carried(opened)), weights, unknown


def trained_context(file: Path) -> int | None:
    """Tokens before the file's own scaling, where it names them."""
    fields = architecture_fields(read_gguf(file))[1]
    key = _KEYS["original"]
    return fields.integer(key) if key in fields.values else None


def _check_keys(fields: Fields) -> None:
    for key, value in fields.values.items():
        if key in _UNDERSTOOD:
            continue
        if key not in _HARMLESS_VALUES:
            raise fields.error(key, "this key is not understood and might change what the model computes")
        harmless = _HARMLESS_VALUES[key]
        # True equals 1 in Python.
        if value != harmless or isinstance(value, bool) != isinstance(harmless, bool):
            raise fields.error(key, f"only {harmless} is supported here")


def _model(
    opened: GgufFile, architecture: str, fields: Fields, provenance: dict | None
) -> tuple[LlamaConfig, ScaleVector]:
    tensors = opened.tensors
    embedding, query = (_matrix(opened, name) for name in ("token_embd.weight", "blk.0.attn_q.weight"))
    heads, hidden = fields.integer("attention.head_count"), fields.integer("embedding_length")
    head_dim = fields.integer("attention.key_length", max(hidden // heads, 1))
    layers, context = fields.integer("block_count"), fields.integer("context_length")
    # Before anything of such a size is built.
    if layers > len(tensors):
        raise fields.error("block_count", f"the file has {len(tensors)} tensors; download or convert it again")
    if heads * head_dim != query.shape[0]:
        raise fields.error(
            "attention.key_length" if "attention.key_length" in fields.values else "attention.head_count",
            f"blk.0.attn_q.weight has {query.shape[0]} rows; convert the model again",
        )
    for key in ("attention.value_length", "rope.dimension_count"):
        if fields.integer(key, head_dim) != head_dim:
            raise fields.error(key, f"only the head dimension, {head_dim}, is supported here")
    if fields.integer("attention.sliding_window", context) < context:
        raise fields.error("attention.sliding_window", "llama.cpp's graph attends to all; use the Hugging Face folder")
    bias, output_bias = (f"blk.0.{name}.bias" in tensors for name in ("attn_q", "attn_output"))
    try:
        config = LlamaConfig(
            vocab_size=embedding.shape[0],
            hidden_size=hidden,
            intermediate_size=fields.integer("feed_forward_length"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=fields.integer("attention.head_count_kv", heads),
            head_dim=head_dim,
            rms_norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
            rope_base=fields.number("rope.freq_base", 10000.0),
            tie_embeddings="output.weight" not in tensors,
            architecture="qwen2" if architecture == "llama" and bias and not output_bias else architecture,
            attention_bias=bias,
            context=context,
        )
        check_base(config.rope_base)
        rope = _rope(opened, fields, config)
        if not provenance or BASE_KEY not in provenance:
            return config, rope
        base = Fields(opened.path, provenance, f"{PROVENANCE_KEY}.").number(BASE_KEY)
        return dataclasses.replace(config, rope_base=base), rebased(rope, config.rope_base, base)
    except InputError as error:
        # The model's and the scaling's own checks know neither the file nor its keys.
        message = str(error.renamed({name: fields.prefix + key for name, key in _KEYS.items()}))
        raise InputError(message if str(opened.path) in message else f"{opened.path}: {message}") from None


def _rope(opened: GgufFile, fields: Fields, config: LlamaConfig) -> ScaleVector:
    """What llama.cpp applies: the factors of the file, its scaling, and its factor on cos and sin, multiplied."""
    found, head_dim, base = gguf_rope(opened), config.head_dim, config.rope_base
    own = identity(head_dim)
    if found.factors is not None:
        own = compose(own, explicit(found.factors, head_dim))
    # The older key counts where the newer is absent, and 0 is as absent.
    factor = fields.values.get("rope.scaling.factor", fields.values.get("rope.scale_linear")) or 1.0
    kind = fields.values.get("rope.scaling.type", "linear")
    if type(factor) not in (int, float):
        raise fields.error("rope.scaling.factor", "give a positive finite number")
    if kind == "yarn":
        scaling = yarn(
            base,
            head_dim,
            factor,
            fields.integer("rope.scaling.original_context_length", config.context),
            beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
        )
        own = compose(own, scaling)
    elif kind == "linear":
        own = compose(own, position_interpolation(head_dim, factor))
    elif kind != "none":
        raise fields.error("rope.scaling.type", "only none, linear and yarn can be written as one scale vector")
    return compose(own, explicit(np.ones(head_dim // 2), head_dim, attention_factor=found.attention_factor))


def _names(opened: GgufFile, architecture: str, config: LlamaConfig) -> tuple[dict[str, str], list[str]]:
    """GGUF's name -> Hugging Face's; and the names that no model of these families has."""
    gguf = import_gguf()
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_layers)
    known = {
        names.get_name(name, (".weight", ".bias")): name for weight in TABLES["qwen3"] for name in weight.names(config)
    }
    found = {name: known[name] for name in opened.tensors if name in known}
    return found, [name for name in opened.tensors if name not in known and name != FACTORS]


def _weights(opened: GgufFile, names: dict[str, str], head_dim: int) -> dict[str, StoredTensor]:
    gguf = import_gguf()
    dtypes = {}
    for name in names:
        kind = opened.tensors[name].kind
        dtypes[name] = _FLOATS.get(kind, "F32")
        if kind not in _FLOATS:
            try:
                gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
            except NotImplementedError as error:
                raise InputError(f"{opened.path}: {name} cannot be read ({error}): use another quantisation") from None
    matrices = {dtypes[name] for name in names if len(opened.tensors[name].shape) > 1}
    weights: dict[str, StoredTensor] = {}
    for name, new_name in names.items():
        stored = opened.tensors[name]
        if len(stored.shape) == 1 and len(matrices) == 1:
            dtypes[name] = _vector_dtype(opened, stored, dtypes[name], *matrices)
        rotated = head_dim if name.split(".")[-2] in ("attn_q", "attn_k") else 0
        size = int(np.prod(stored.shape)) * DTYPES[dtypes[name]].itemsize
        weights[new_name] = GgufWeight(new_name, opened.path, dtypes[name], stored.shape, size, opened, stored, rotated)
    return weights


def _vector_dtype(opened: GgufFile, stored: GgufTensor, dtype: str, matrices: str) -> str:
    """llama.cpp wants vectors in float32 whatever the model's dtype; where that loses nothing, they have that again."""
    if dtype != "F32":
        return dtype
    values = opened.data(stored).view(np.float32)
    with np.errstate(over="ignore"):
        narrow = values.astype(DTYPES[matrices])
    return matrices if np.array_equal(narrow.astype(np.float32), values) else dtype


def _matrix(opened: GgufFile, name: str) -> GgufTensor:
    tensor = opened.tensors.get(name)
    if tensor is None or len(tensor.shape) != 2:
        raise InputError(f"{opened.path} has no matrix {name}: it is no language model, or not complete")
    return tensor


def _halves(values: np.ndarray, head_dim: int) -> np.ndarray:
    """Reorders rows of whole heads: llama.cpp's llama rotates (x[2i], x[2i+1]), Hugging Face (x[i], x[i + D/2])."""
    return values.reshape(-1, head_dim // 2, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _provenance(opened: GgufFile) -> dict | None:
    """What an export of this package recorded about its scale vector."""
    text = opened.values.get(PROVENANCE_KEY)
    if text is None:
        return None
    try:
        found: Any = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{opened.path}: {PROVENANCE_KEY} is no JSON object: convert the model again")
    return found


def _carried(opened: GgufFile) -> dict:
    values = {key: opened.values.get(f"tokenizer.ggml.{name}") for name, key in _IDS.items()}
    return {key: value for key, value in values.items() if type(value) is int}
