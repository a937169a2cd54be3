"""The `config.json` of an export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rope_jax.errors import InputError
from rope_jax.gguf_reader import is_gguf
from rope_jax.interop.hf_keys import ARCHITECTURES, PROVENANCE_KEY, SHAPE
from rope_jax.interop.model_folder import read_source
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector


def describe_export(
    config: LlamaConfig,
    rope: ScaleVector,
    *,
    context: int,
    dtype: str,
    provenance: Mapping,
    carried: Mapping,
) -> tuple[dict, float]:
    """Checks what an export is to say and describes it as a `config.json` that stock engines load.

    A vector becomes `longrope` with equal short and long lists (LLaMA in transformers keeps its KV cache across the
    switch, so unequal lists would corrupt generation), `attention_factor` 1, and an original length equal to the
    maximum, from which engines that derive their own attention factor derive 1. Up to transformers 4.57 only
    `rope_scaling` is read, and from 5 both keys are.

    Args:
        config: model shape.
        rope: scale vector, factors ``[D/2]`` (or rows per layer that are all equal).
        context: extended context, tokens.
        dtype: dtype of the tensors.
        provenance: what the vector was made from.
        carried: keys of the source that change no logit.

    Returns:
        The object, and the attention factor that `fold_attention_factor` moves into the weights.
    """
    factors, attention_factor = _one_vector(rope, config)
    _check_context(context, config)
    provenance = dict(provenance)
    if attention_factor != 1:
        provenance["folded_attention_factor"] = attention_factor
    try:
        json.dumps(provenance, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"`provenance` cannot be written as JSON ({error}): give strings and numbers", field="provenance"
        ) from None
    base = float(config.rope_base)
    if np.all(factors == 1):
        scaling, parameters = None, {"rope_type": "default", "rope_theta": base}
    else:
        numbers = [float(factor) for factor in factors]
        scaling = {
            "rope_type": "longrope",
            "short_factor": numbers,
            "long_factor": numbers,
            "attention_factor": 1.0,
            "factor": 1.0,
            "original_max_position_embeddings": context,
        }
        parameters = scaling | {"rope_theta": base}
    known = ARCHITECTURES[config.architecture]
    model: dict = {
        "architectures": [known.name],
        "model_type": config.architecture,
        "hidden_act": "silu",
        **{key: getattr(config, field) for field, (key, _) in SHAPE.items()},
        **known.written,
        **{key: getattr(config, key) for key in known.understood if hasattr(config, key)},
        "max_position_embeddings": context,
        "rope_theta": base,
        "rope_scaling": scaling,
        "rope_parameters": parameters,
        # Up to transformers 4.55 only this name is read, and later versions read it too.
        "torch_dtype": dtype,
        PROVENANCE_KEY: provenance,
    }
    # Without these, transformers assumes LLaMA's ids 1 and 2, which are ordinary tokens elsewhere.
    ids = {"bos_token_id": None, "eos_token_id": None}
    return {**ids, **carried, **model}, attention_factor


def carried_keys(source: Path, config: LlamaConfig) -> dict:
    """Keys of a source, a folder or a GGUF file, that change no logit; `InputError` if it is another model."""
    if not is_gguf(source) and not (source / "config.json").exists():
        return {}
    known = read_source(source)
    if known.config.vocab_size != config.vocab_size:
        raise InputError(
            f"`source` {source} has vocab_size {known.config.vocab_size} and the model {config.vocab_size}: give the "
            "folder that the model was made from",
            field="source",
        )
    return known.carried


def _one_vector(rope: ScaleVector, config: LlamaConfig) -> tuple[np.ndarray, float]:
    factors = np.asarray(rope.factors, np.float32)
    attention_factor = float(rope.attention_factor)
    pairs = config.head_dim // 2
    if factors.shape == (config.num_layers, pairs) and (factors == factors[:1]).all():
        factors = factors[0]
    if factors.shape == (config.num_layers, pairs):
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
    if not (np.isfinite(attention_factor) and attention_factor > 0):
        raise InputError(
            f"the attention factor of `rope` is {attention_factor}: it must be a finite number above 0", field="rope"
        )
    return factors, attention_factor


def _check_context(context, config):
    if isinstance(context, bool) or not isinstance(context, int) or context < 1:
        raise InputError(f"`context` is {context}: give a positive number of tokens", field="context")
    if config.architecture == "llama" and config.hidden_size % config.num_heads:
        raise InputError(
            f"`hidden_size` is {config.hidden_size} and `num_heads` {config.num_heads}: transformers loads only LLaMAs "
            "whose sizes divide, even where head_dim is given",
            field="hidden_size",
        )
