"""The shape of a model from Hugging Face's `config.json`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rope_jax.errors import InputError
from rope_jax.files import read_json_object
from rope_jax.interop.hf_keys import (
    ARCHITECTURES,
    HARMLESS,
    HARMLESS_VALUES,
    NOT_CARRIED,
    PROVENANCE_KEY,
    UNDERSTOOD,
    Architecture,
)
from rope_jax.interop.hf_rope import read_rope
from rope_jax.interop.json_fields import boolean, integer, number, shown, unusable
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """What a `config.json` says.

    Attributes:
        config: the model's shape; `param_dtype` is the file's dtype where it names one, and what a file does
            not know (`dtype`, `remat`, ...) has its default.
        rope: the model's own scaling; factors of one for a plain model.
        provenance: what our own export noted about its scale vector; None in a config by others.
        carried: the keys that change no logit, for an export to carry on.
    """

    config: LlamaConfig
    rope: ScaleVector
    provenance: dict | None
    carried: dict


def read_config(folder: Path) -> SourceConfig:
    """Reads `config.json` of a model folder.

    Defaults are those of transformers' config classes (5.23); sizes have none.

    Args:
        folder: model folder.

    Returns:
        What the file says.

    Raises:
        InputError: naming the file, the key, its value and the fix, for anything this package would compute
            differently from what the file asks for.
    """
    path = Path(folder) / "config.json"
    raw = read_json_object(path)
    known = _architecture(path, raw)
    _check_allowed(path, raw, known)
    raw = {**known.defaults, **raw}

    kind, layers = raw["model_type"], integer(path, raw, "num_hidden_layers")
    heads = integer(path, raw, "num_attention_heads")
    hidden = integer(path, raw, "hidden_size")
    head_dim = integer(path, raw, "head_dim", default=max(hidden // heads, 1))
    context = integer(path, raw, "max_position_embeddings", default=known.defaults["max_position_embeddings"])
    if raw.get("head_dim") is None and hidden % heads:
        raise InputError(
            f"{path}: hidden_size is {hidden} and num_attention_heads {heads}: give head_dim, or sizes that divide"
        )
    if raw.get("layer_types") not in (None, ["full_attention"] * layers):
        raise unusable(path, "layer_types", raw["layer_types"], "only full attention in every layer is supported here")
    windowed = kind == "mistral" and raw["sliding_window"] is not None
    try:
        base, rope = read_rope(path, raw, head_dim, context)
        config = LlamaConfig(
            architecture=kind,
            vocab_size=integer(path, raw, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=integer(path, raw, "intermediate_size"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=integer(path, raw, "num_key_value_heads", default=heads),
            head_dim=head_dim,
            rms_norm_eps=number(path, raw, "rms_norm_eps", default=1e-6),
            rope_base=base,
            tie_embeddings=boolean(path, raw, "tie_word_embeddings", default=False),
            attention_bias=boolean(path, raw, "attention_bias", default=kind == "qwen2"),
            sliding_window=integer(path, raw, "sliding_window") if windowed else None,
            context=context,
            initializer_range=number(path, raw, "initializer_range", default=0.02),
            param_dtype=_dtype(path, raw) or "float32",
        )
    except InputError as error:
        # What the model's own classes refuse does not know the file.
        message = str(error)
        raise InputError(message if str(path) in message else f"{path}: {message}") from None
    provenance = raw.get(PROVENANCE_KEY)
    if provenance is not None and not isinstance(provenance, dict):
        raise unusable(path, PROVENANCE_KEY, provenance, "it must be an object; remove it")
    carried = {
        key: value
        for key, value in raw.items()
        if (key in HARMLESS or key in HARMLESS_VALUES) and key not in NOT_CARRIED
    }
    return SourceConfig(config, rope, provenance, carried)


def _architecture(path, raw) -> Architecture:
    kind = raw.get("model_type")
    # As a string, because an untrusted file may hold a list here, which no dictionary can look up.
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise unusable(path, "model_type", kind, f"use a model of type {', '.join(ARCHITECTURES)}")
    names, known = raw.get("architectures"), ARCHITECTURES[kind]
    if names is not None and names != [known.name]:
        raise unusable(path, "architectures", names, f'use a causal model: ["{known.name}"]')
    return known


def _check_allowed(path, raw, known: Architecture):
    values = {**HARMLESS_VALUES, **known.values}
    for key, value in raw.items():
        if key in UNDERSTOOD | HARMLESS | known.understood | known.harmless:
            continue
        if key not in values:
            raise unusable(
                path,
                key,
                value,
                "this key is not understood and might change what the model computes; use a model without "
                "it, or remove it if it is known to change nothing",
            )
        # A JSON true equals 1 in Python; only a number may stand for a number.
        if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values[key]):
            allowed = " or ".join(shown(other) for other in values[key])
            raise unusable(path, key, value, f"only {allowed} is supported here")


def _dtype(path, raw) -> str | None:
    found = {}
    for key in ("dtype", "torch_dtype"):
        value = raw.get(key)
        if value is None or value == "auto":
            continue
        if not isinstance(value, str) or value.removeprefix("torch.") not in DTYPES:
            raise unusable(path, key, value, f"use weights in {', '.join(DTYPES)}")
        found[key] = value.removeprefix("torch.")
    if len(set(found.values())) > 1:
        raise InputError(f"{path}: dtype is {found['dtype']} and torch_dtype {found['torch_dtype']}: remove one")
    return next(iter(found.values()), None)
