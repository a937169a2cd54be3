"""The shape of a model from Hugging Face's `config.json`."""

import dataclasses
from pathlib import Path
from typing import Any

from rope_jax.errors import InputError
from rope_jax.files import LARGEST_CONFIG, Fields, read_json_object, shown
from rope_jax.interop import hf_keys
from rope_jax.interop.hf_rope import read_rope
from rope_jax.model.config import DTYPES, LlamaConfig
from rope_jax.rope.embedding import ScaleVector
from rope_jax.rope.relative import rebased

# Arguments of the model and of scalings -> keys of `config.json`.
_KEYS = {field: key for field, (key, _) in hf_keys.SHAPE.items()} | {
    "attention_factor": "attention_factor",
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
        rope: the model's own scaling, relative to `config.rope_base`.
        provenance: what an export of this package recorded about its scale vector; None in a config by others.
        carried: the keys that change no logit, for an export to keep.
        block: the scaling in the file's own words.
        undeclared: those of the carried keys that no config class of transformers declares for such a model.
    """

    config: LlamaConfig
    rope: ScaleVector
    provenance: dict | None
    carried: dict
    block: dict = dataclasses.field(default_factory=dict)
    undeclared: tuple[str, ...] = ()


def read_config(folder: Path) -> SourceConfig:
    """Reads `config.json` of a model folder.

    Defaults are those of transformers' config classes (5.23); sizes have none.

    Raises:
        InputError: naming the file, the key, its value and the fix, for anything this package would compute
            differently from what the file asks for.
    """
    path = Path(folder) / "config.json"
    known, raw, undeclared = _understood(Fields(path, read_json_object(path, LARGEST_CONFIG)))
    fields = Fields(path, raw)
    kind = raw["model_type"]
    heads, hidden = (hf_keys.SHAPE[field][1](fields, hf_keys.SHAPE[field][0]) for field in ("num_heads", "hidden_size"))
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
    layers = raw.get("layer_types")
    if layers is not None and (layers != ["full_attention"] * shape["num_layers"]):
        raise fields.error("layer_types", "only full attention in every layer is supported here")
    windowed = kind == "mistral" and raw["sliding_window"] is not None
    provenance = raw.get(hf_keys.PROVENANCE_KEY)
    if provenance is not None and not isinstance(provenance, dict):
        raise fields.error(hf_keys.PROVENANCE_KEY, "it must be an object; remove it")
    try:
        layered = raw.get("layer_types") is not None or kind in ("qwen2", "qwen3")
        stored = read_rope(fields, shape["head_dim"], shape["context"], layered)
        base = stored.base
        if provenance and hf_keys.BASE_KEY in provenance and stored.block["rope_type"] == "default":
            base = Fields(path, provenance, f"{hf_keys.PROVENANCE_KEY}.").number(hf_keys.BASE_KEY)
        rope = rebased(stored.scale, stored.base, base)
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
    kept = (hf_keys.HARMLESS | hf_keys.HARMLESS_VALUES.keys() | set(undeclared)) - hf_keys.NOT_CARRIED
    carried = {key: value for key, value in raw.items() if key in kept}
    return SourceConfig(config, rope, provenance, carried, stored.block, undeclared)


def _understood(fields: Fields) -> tuple[hf_keys.Architecture, dict, tuple[str, ...]]:
    """The architecture, the keys of the file with its defaults, and those that transformers does not read.

    A key that would be computed in another way is an error; all such keys are in it.
    """
    kind, names = fields.values.get("model_type"), fields.values.get("architectures")
    # As a string, because an untrusted file may hold a list here, which no dictionary can look up.
    if not isinstance(kind, str) or kind not in hf_keys.ARCHITECTURES:
        raise fields.error("model_type", f"use a model of type {', '.join(hf_keys.ARCHITECTURES)}")
    known = hf_keys.ARCHITECTURES[kind]
    if names is not None and names != [known.name]:
        raise fields.error("architectures", f'use a causal model: ["{known.name}"]')
    values = {**hf_keys.HARMLESS_VALUES, **known.values}
    understood = hf_keys.UNDERSTOOD | hf_keys.HARMLESS | {*known.understood, *known.harmless}
    rest = {key: value for key, value in fields.values.items() if key not in understood}
    # A JSON true equals 1 in Python; only a number may stand for a number.
    refused = [
        f"{key} is {shown(value)}: only {' or '.join(map(shown, values[key]))} is supported here"
        for key, value in rest.items()
        if key in values and not any(value == o and isinstance(value, bool) == isinstance(o, bool) for o in values[key])
    ]
    if refused:
        raise InputError(f"{fields.path}: {'; '.join(refused)}")
    return known, {**known.defaults, **fields.values}, tuple(key for key in rest if key not in values)


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
