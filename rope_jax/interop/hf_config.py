"""The shape of a model from Hugging Face's `config.json`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rope_jax.errors import InputError
from rope_jax.files import Fields, read_json_object, shown
from rope_jax.interop import hf_keys
from rope_jax.interop.hf_rope import read_rope
from rope_jax.model.config import DTYPES, LlamaConfig
from rope_jax.rope.embedding import ScaleVector

# Arguments of the model and of scalings -> keys of `config.json`.
_KEYS = {field: key for field, (key, _) in hf_keys.SHAPE.items()} | {
    "base": "rope_theta",
    "extension": "factor",
    "factors": "long_factor",
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "original": "original_max_position_embeddings",
}


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """What a `config.json` says.

    Attributes:
        config: the model's shape; `param_dtype` is the file's dtype where it names one. How to compute (`dtype`,
            `remat`, ...) is not in the file and has its default.
        rope: the model's own scaling.
        provenance: what an export of this package recorded about its scale vector; None in a config by others.
        carried: the keys that change no logit, for an export to keep.
    """

    config: LlamaConfig
    rope: ScaleVector
    provenance: dict | None
    carried: dict


def read_config(folder: Path) -> SourceConfig:
    """Reads `config.json` of a model folder.

    Defaults are those of transformers' config classes (5.23); sizes have none.

    Raises:
        InputError: naming the file, the key, its value and the fix, for anything this package would compute
            differently from what the file asks for.
    """
    path = Path(folder) / "config.json"
    known, raw = _understood(Fields(path, read_json_object(path)))
    fields = Fields(path, raw)
    kind, heads, hidden = raw["model_type"], fields.integer("num_attention_heads"), fields.integer("hidden_size")
    if raw.get("head_dim") is None and hidden % heads:
        raise fields.error("hidden_size", f"num_attention_heads is {heads}; give head_dim, or sizes that divide")
    absent = {
        "num_kv_heads": heads,
        "head_dim": max(hidden // heads, 1),
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "tie_embeddings": False,
        "context": known.defaults["max_position_embeddings"],
    }
    shape: dict[str, Any] = {
        field: read(fields, key, absent.get(field)) for field, (key, read) in hf_keys.SHAPE.items()
    }
    if raw.get("layer_types") not in (None, ["full_attention"] * shape["num_layers"]):
        raise fields.error("layer_types", "only full attention in every layer is supported here")
    windowed = kind == "mistral" and raw["sliding_window"] is not None
    try:
        base, rope = read_rope(fields, shape["head_dim"], shape["context"])
        config = LlamaConfig(
            **shape,
            architecture=kind,
            attention_bias=fields.boolean("attention_bias", default=kind == "qwen2"),
            sliding_window=fields.integer("sliding_window") if windowed else None,
            param_dtype=_dtype(fields) or "float32",
            rope_base=base,
        )
    except InputError as error:
        # The model's and the scaling's own checks know neither the file nor its keys.
        message = str(error.renamed(_KEYS))
        raise InputError(message if str(path) in message else f"{path}: {message}") from None
    provenance = raw.get(hf_keys.PROVENANCE_KEY)
    if provenance is not None and not isinstance(provenance, dict):
        raise fields.error(hf_keys.PROVENANCE_KEY, "it must be an object; remove it")
    carried = {
        key: value
        for key, value in raw.items()
        if (key in hf_keys.HARMLESS or key in hf_keys.HARMLESS_VALUES) and key not in hf_keys.NOT_CARRIED
    }
    return SourceConfig(config, rope, provenance, carried)


def _understood(fields: Fields) -> tuple[hf_keys.Architecture, dict]:
    """The architecture, and the file's keys with its defaults, if every key is known to be computed as it asks."""
    kind, names = fields.values.get("model_type"), fields.values.get("architectures")
    # As a string, because an untrusted file may hold a list here, which no dictionary can look up.
    if not isinstance(kind, str) or kind not in hf_keys.ARCHITECTURES:
        raise fields.error("model_type", f"use a model of type {', '.join(hf_keys.ARCHITECTURES)}")
    known = hf_keys.ARCHITECTURES[kind]
    if names is not None and names != [known.name]:
        raise fields.error("architectures", f'use a causal model: ["{known.name}"]')
    values = {**hf_keys.HARMLESS_VALUES, **known.values}
    for key, value in fields.values.items():
        if key in hf_keys.UNDERSTOOD | hf_keys.HARMLESS or key in known.understood + known.harmless:
            continue
        if key not in values:
            raise fields.error(
                key,
                "this key is not understood and might change what the model computes; use a model without it, or "
                "remove it if it is known to change nothing",
            )
        # A JSON true equals 1 in Python; only a number may stand for a number.
        if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values[key]):
            raise fields.error(key, f"only {' or '.join(map(shown, values[key]))} is supported here")
    return known, {**known.defaults, **fields.values}


def _dtype(fields: Fields) -> str | None:
    found = {}
    for key in ("dtype", "torch_dtype"):
        value = fields.values.get(key)
        if value is None or value == "auto":
            continue
        if not isinstance(value, str) or value.removeprefix("torch.") not in DTYPES:
            raise fields.error(key, f"use weights in {', '.join(DTYPES)}")
        found[key] = value.removeprefix("torch.")
    if len(set(found.values())) > 1:
        raise InputError(f"{fields.path}: dtype is {found['dtype']} and torch_dtype {found['torch_dtype']}: remove one")
    return next(iter(found.values()), None)
