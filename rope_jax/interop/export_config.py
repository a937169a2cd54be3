"""The `config.json` of an export."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rope_jax.errors import InputError
from rope_jax.gguf_reader import is_gguf
from rope_jax.interop.hf_config import SourceConfig
from rope_jax.interop.hf_keys import ARCHITECTURES, BASE_KEY, PROVENANCE_KEY, SHAPE
from rope_jax.interop.model_folder import read_source
from rope_jax.interop.native_rope import describe_rope
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector


def describe_export(
    config: LlamaConfig,
    rope: ScaleVector,
    *,
    context: int,
    dtype: str,
    provenance: Mapping,
    source: SourceConfig | None = None,
) -> dict:
    """Checks what an export is to say and describes it as a `config.json` that stock engines load.

    Up to transformers 4.57 only `rope_scaling` is read, and from 5 `rope_parameters` too.

    Args:
        config: model shape.
        rope: scale vector, factors ``[D/2]`` (or rows per layer that are all equal).
        context: extended context, tokens.
        dtype: dtype of the tensors.
        provenance: what the vector was made from.
        source: what the config of the source says; its keys that change no logit are kept.
    """
    rope = _one_vector(rope, config)
    _check_context(context, config)
    base, provenance = float(config.rope_base), dict(provenance)
    named = provenance.get("original_context")
    originals = (*((named,) if isinstance(named, int) and named > 0 else ()), config.context)
    theta, scaling = describe_rope(rope, base, context=context, originals=originals, own=source and source.block)
    if theta != base:
        provenance[BASE_KEY] = base
    try:
        json.dumps(provenance, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"`provenance` cannot be written as JSON ({error}): give strings and numbers") from None
    known = ARCHITECTURES[config.architecture]
    model: dict = {
        "architectures": [known.name],
        "model_type": config.architecture,
        "hidden_act": "silu",
        **{key: getattr(config, field) for field, (key, _) in SHAPE.items()},
        **known.written,
        **{key: getattr(config, key) for key in known.understood if hasattr(config, key)},
        "max_position_embeddings": context,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rope_parameters": (scaling or {"rope_type": "default"}) | {"rope_theta": theta},
        # Up to transformers 4.55 only this name is read, and later versions read it too.
        "torch_dtype": dtype,
        PROVENANCE_KEY: provenance,
    }
    # Without these, transformers assumes LLaMA's ids 1 and 2, which are ordinary tokens elsewhere.
    ids = {"bos_token_id": None, "eos_token_id": None}
    return {**ids, **(source.carried if source else {}), **model}


def source_config(source: Path, config: LlamaConfig) -> SourceConfig | None:
    """What a source, a folder or a GGUF file, says of its model, if it does; `InputError` if it is another model."""
    if not is_gguf(source) and not (source / "config.json").exists():
        return None
    known = read_source(source)
    if known.config.vocab_size != config.vocab_size:
        raise InputError(
            f"`source` {source} has vocab_size {known.config.vocab_size} and the model {config.vocab_size}: give the "
            "folder that the model was made from"
        )
    return known


def _one_vector(rope: ScaleVector, config: LlamaConfig) -> ScaleVector:
    factors = np.asarray(rope.factors, np.float32)
    numbers, pairs = np.ravel(np.asarray(rope.attention_factor, float)), config.head_dim // 2
    if factors.shape == (config.num_layers, pairs) and (factors == factors[:1]).all():
        factors = factors[0]
    if factors.shape == (config.num_layers, pairs) or len(np.unique(numbers)) > 1:
        raise InputError(
            "the factors of `rope` differ from layer to layer, which no stock config.json can say: export one vector "
            "for the whole model",
            field="rope",
        )
    if factors.shape != (pairs,):
        raise InputError(
            f"the factors of `rope` have shape {list(factors.shape)}: this model needs [{pairs}]", field="rope"
        )
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise InputError("the factors of `rope` hold an entry that is not a positive finite number", field="rope")
    attention_factor = float(numbers[0])
    if not (np.isfinite(attention_factor) and attention_factor > 0):
        raise InputError(
            f"the attention factor of `rope` is {attention_factor}: it must be a finite number above 0", field="rope"
        )
    return ScaleVector.create(factors, attention_factor)


def _check_context(context, config):
    if isinstance(context, bool) or not isinstance(context, int) or context < 1:
        raise InputError(f"`context` is {context}: give a positive number of tokens")
    if config.architecture == "llama" and config.hidden_size % config.num_heads:
        raise InputError(
            f"`hidden_size` is {config.hidden_size} and `num_heads` {config.num_heads}: transformers loads only LLaMAs "
            "whose sizes divide, even where head_dim is given"
        )
