"""Hugging Face's `config.json`, in and out.

Reading is by allow-list: a key is understood, or known to leave the computation as it is here, or the file is
refused. An ignored key that matters gives a model that runs and is wrong.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

from rope_jax.errors import InputError
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector, frequencies
from rope_jax.rope.scaling import (
    explicit,
    extrapolation,
    llama3,
    longrope_attention_factor,
    position_interpolation,
    yarn,
)

# `model_type` -> the class whose computation and weight names this package reproduces.
ARCHITECTURES = {"llama": "LlamaForCausalLM"}

# The top-level key under which an export says what its scale vector was made from.
PROVENANCE_KEY = "rope_jax"

DTYPES = ("float32", "bfloat16", "float16")

# Keys that `read_config` interprets.
UNDERSTOOD = frozenset(
    {
        "architectures",
        "dtype",
        "head_dim",
        "hidden_size",
        "initializer_range",
        "intermediate_size",
        "max_position_embeddings",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "original_max_position_embeddings",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "tie_word_embeddings",
        "torch_dtype",
        "vocab_size",
        PROVENANCE_KEY,
    }
)

# Keys that may only have the values at which they change nothing.
HARMLESS_VALUES = {
    "add_cross_attention": (False,),
    "attention_bias": (False,),
    "attention_dropout": (0, None),
    "chunk_size_feed_forward": (0,),
    "cross_attention_hidden_size": (None,),
    "hidden_act": ("silu", "swish"),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "is_llama_config": (True,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1, None),
    # Above 1, transformers 4 summed each product in as many slices: other roundings.
    "pretraining_tp": (1, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "rope_interleaved": (False,),
    "tie_encoder_decoder": (False,),
}

# Keys that change no logit whatever they hold: labels, token ids, what an API returns, how text is sampled.
HARMLESS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
        "attn_implementation",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "eos_token_id",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "id2label",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "name_or_path",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_labels",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "prefix",
        "problem_type",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "typical_p",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
    }
)

# What describes the folder that a config was read from, rather than the model.
NOT_CARRIED = frozenset({"_commit_hash", "_name_or_path", "name_or_path"})

# `rope_type` -> keys that it must and may have beside `rope_type` and `rope_theta`.
ROPE_KEYS = {
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor"}, {"original_max_position_embeddings"}),
    "yarn": (
        {"factor"},
        {"original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate"},
    ),
    "longrope": (
        {"short_factor", "long_factor"},
        {"original_max_position_embeddings", "factor", "attention_factor"},
    ),
}


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


def read_json(path: Path) -> dict:
    """A JSON object from a file that nobody vouches for.

    Args:
        path: file.

    Returns:
        The object.

    Raises:
        InputError: if the file is absent, is not a JSON object, or names a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a complete model folder") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: download or export it again") from None
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _object(path, pairs))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): download or export it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__}, not an object: download it again")
    return value


def read_config(folder: Path) -> SourceConfig:
    """Reads `config.json` of a model folder.

    Defaults are those of `transformers.LlamaConfig` (5.23); sizes have none.

    Args:
        folder: model folder.

    Returns:
        What the file says.

    Raises:
        InputError: naming the file, the key, its value and the fix, for anything this package would compute
            differently from what the file asks for.
    """
    path = Path(folder) / "config.json"
    raw = read_json(path)
    _check_architecture(path, raw)
    _check_allowed(path, raw)

    heads = _integer(path, raw, "num_attention_heads")
    hidden = _integer(path, raw, "hidden_size")
    head_dim = _integer(path, raw, "head_dim", default=max(hidden // heads, 1))
    context = _integer(path, raw, "max_position_embeddings", default=2048)
    if raw.get("head_dim") is None and hidden % heads:
        raise InputError(
            f"{path}: hidden_size is {hidden} and num_attention_heads {heads}: give head_dim, or sizes that divide"
        )
    try:
        base, rope = _read_rope(path, raw, head_dim, context)
        config = LlamaConfig(
            vocab_size=_integer(path, raw, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=_integer(path, raw, "intermediate_size"),
            num_layers=_integer(path, raw, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=_integer(path, raw, "num_key_value_heads", default=heads),
            head_dim=head_dim,
            rms_norm_eps=_number(path, raw, "rms_norm_eps", default=1e-6),
            rope_base=base,
            tie_embeddings=_boolean(path, raw, "tie_word_embeddings", default=False),
            context=context,
            initializer_range=_number(path, raw, "initializer_range", default=0.02),
            param_dtype=_dtype(path, raw) or "float32",
        )
    except InputError as error:
        # What the model's own classes refuse does not know the file.
        message = str(error)
        raise InputError(message if str(path) in message else f"{path}: {message}") from None
    provenance = raw.get(PROVENANCE_KEY)
    if provenance is not None and not isinstance(provenance, dict):
        raise _unusable(path, PROVENANCE_KEY, provenance, "it must be an object; remove it")
    carried = {
        key: value
        for key, value in raw.items()
        if (key in HARMLESS or key in HARMLESS_VALUES) and key not in NOT_CARRIED
    }
    return SourceConfig(config, rope, provenance, carried)


def _object(path, pairs):
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InputError(f"{path} has the key {twice!r} twice: remove one")
    return value


def shown(value) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 120 else text[:117] + "..."


def _unusable(path, key, value, fix) -> InputError:
    return InputError(f"{path}: {key} is {shown(value)}: {fix}")


def _check_architecture(path, raw):
    kind = raw.get("model_type")
    known = ", ".join(ARCHITECTURES)
    # As a string, because an untrusted file may hold a list here, which no dictionary can look up.
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise _unusable(path, "model_type", kind, f"use a model of type {known}")
    names = raw.get("architectures")
    if names is not None and names != [ARCHITECTURES[kind]]:
        raise _unusable(path, "architectures", names, f'use a causal model: ["{ARCHITECTURES[kind]}"]')


def _check_allowed(path, raw):
    for key, value in raw.items():
        if key in UNDERSTOOD or key in HARMLESS:
            continue
        if key not in HARMLESS_VALUES:
            raise _unusable(
                path,
                key,
                value,
                "this key is not understood and might change what the model computes; use a model without "
                "it, or remove it if it is known to change nothing",
            )
        allowed = HARMLESS_VALUES[key]
        # A JSON true equals 1 in Python; only a number may stand for a number.
        if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in allowed):
            raise _unusable(
                path, key, value, f"only {' or '.join(shown(other) for other in allowed)} is supported here"
            )


def _integer(path, raw, key, default=None) -> int:
    value = raw.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _unusable(path, key, value, "give a positive integer")
    return value


def _number(path, raw, key, default=None, name=None) -> float:
    value = raw.get(key)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise _unusable(path, name or key, value, "give a positive finite number")
    return float(value)


def _boolean(path, raw, key, default) -> bool:
    value = raw.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _unusable(path, key, value, "give true or false")
    return value


def _dtype(path, raw) -> str | None:
    found = {}
    for key in ("dtype", "torch_dtype"):
        value = raw.get(key)
        if value is None or value == "auto":
            continue
        if not isinstance(value, str) or value.removeprefix("torch.") not in DTYPES:
            raise _unusable(path, key, value, f"use weights in {', '.join(DTYPES)}")
        found[key] = value.removeprefix("torch.")
    if len(set(found.values())) > 1:
        raise InputError(f"{path}: dtype is {found['dtype']} and torch_dtype {found['torch_dtype']}: remove one")
    return next(iter(found.values()), None)


def _read_rope(path, raw, head_dim, context) -> tuple[float, ScaleVector]:
    blocks = {
        key: _rope_block(path, key, raw[key])
        for key in ("rope_scaling", "rope_parameters")
        if raw.get(key) not in (None, {})
    }
    bases = {
        name: _number(path, where, "rope_theta", name=name)
        for name, where in [("rope_theta", raw)] + [(f"{key}.rope_theta", b) for key, b in blocks.items()]
        if where.get("rope_theta") is not None
    }
    base = _agreed(path, bases, 10000.0)
    if base <= 1:
        raise _unusable(path, "rope_theta", base, "it must be above 1 (LLaMA2 uses 10000)")
    # transformers reads these from the top level too, and lets that one win.
    top = {"original_max_position_embeddings": raw.get("original_max_position_embeddings")}
    lengths = {
        name: _integer(path, where, "original_max_position_embeddings")
        for name, where in [("original_max_position_embeddings", top)]
        + [(f"{key}.original_max_position_embeddings", block) for key, block in blocks.items()]
        if where.get("original_max_position_embeddings") is not None
    }
    original = _agreed(path, lengths, context)
    bare = {
        key: {name: value for name, value in block.items() if name != "rope_theta"} for key, block in blocks.items()
    }
    if len(bare) == 2 and bare["rope_scaling"] != bare["rope_parameters"]:
        raise InputError(
            f"{path}: rope_scaling is {shown(bare['rope_scaling'])} and rope_parameters "
            f"{shown(bare['rope_parameters'])}: they describe one thing, so remove the one that is wrong"
        )
    key, block = next(iter(bare.items()), ("rope_parameters", {"rope_type": "default"}))
    kind = block["rope_type"]
    if top["original_max_position_embeddings"] is not None and kind in ("default", "linear"):
        raise _unusable(
            path, "original_max_position_embeddings", original, f"{kind} rotary positions use none; remove it"
        )
    return base, _scale_vector(path, key, block, base, head_dim, context, original)


def _rope_block(path, key, block) -> dict:
    if not isinstance(block, dict):
        raise _unusable(path, key, block, "give an object")
    block = {name: value for name, value in block.items() if value is not None}
    # Up to transformers 4.42 the key was called "type".
    legacy = block.pop("type", None)
    kind = block.setdefault("rope_type", legacy or "default")
    if legacy is not None and legacy != kind:
        raise InputError(f"{path}: {key}.rope_type is {shown(kind)} and {key}.type {shown(legacy)}: remove one")
    if not isinstance(kind, str) or kind not in ROPE_KEYS:
        raise InputError(
            f"{path}: unsupported rope_scaling: {key}.rope_type is {shown(kind)}, and only "
            f"{', '.join(ROPE_KEYS)} can be written as one scale vector; use a model with one of those"
        )
    if block.pop("partial_rotary_factor", 1) != 1:
        raise InputError(f"{path}: {key}.partial_rotary_factor is not 1: use a model that turns whole heads")
    required, optional = ROPE_KEYS[kind]
    for name in sorted(required - set(block)):
        raise InputError(f"{path}: {key} has no {name}, which rope_type {kind} needs: add it")
    for name in sorted(set(block) - required - optional - {"rope_type", "rope_theta"}):
        raise _unusable(
            path,
            f"{key}.{name}",
            block[name],
            f"unsupported rope_scaling for rope_type {kind}; remove the key",
        )
    return block


def _agreed(path, found, default):
    if len(set(found.values())) > 1:
        values = ", ".join(f"{name} is {value}" for name, value in found.items())
        raise InputError(f"{path}: {values}: they describe one thing, so remove those that are wrong")
    return next(iter(found.values()), default)


def _scale_vector(path, key, block, base, head_dim, context, original) -> ScaleVector:
    def number(name, default=None):
        return _number(path, block, name, default, name=f"{key}.{name}")

    match block["rope_type"]:
        case "default":
            return extrapolation(head_dim)
        case "linear":
            return position_interpolation(head_dim, number("factor"))
        case "llama3":
            return llama3(
                frequencies(base, head_dim),
                number("factor"),
                original,
                number("low_freq_factor"),
                number("high_freq_factor"),
            )
        case "yarn":
            return yarn(
                base,
                head_dim,
                number("factor"),
                original,
                number("beta_fast", 32.0),
                number("beta_slow", 1.0),
                truncate=_boolean(path, block, "truncate", True),
                attention_factor=number("attention_factor") if "attention_factor" in block else None,
            )
        case "longrope":
            short, long = block["short_factor"], block["long_factor"]
            if short != long:
                raise InputError(
                    f"{path}: {key}.short_factor and {key}.long_factor differ: such a model switches frequencies "
                    "at its original length, which one scale vector cannot say and which corrupts a LLaMA's "
                    "key cache; set both to the list that you want at every length"
                )
            if "attention_factor" in block:
                attention_factor = number("attention_factor")
            else:
                extension = number("factor", context / original)
                attention_factor = longrope_attention_factor(max(extension, 1.0), original)
            if not isinstance(long, list) or not all(type(value) in (int, float) for value in long):
                raise _unusable(path, f"{key}.long_factor", long, "give a list of numbers")
            return explicit(long, head_dim, attention_factor=attention_factor)
        case kind:
            raise AssertionError(f"rope_type {kind} is in ROPE_KEYS and not here")
