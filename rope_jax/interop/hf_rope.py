"""Rotary positions as `config.json` describes them: one base and one scale vector."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from rope_jax.errors import InputError
from rope_jax.files import Fields, shown
from rope_jax.rope.checks import check_base
from rope_jax.rope.embedding import ScaleVector, frequencies, identity
from rope_jax.rope.methods.by_parts import llama3, yarn
from rope_jax.rope.methods.explicit import explicit, longrope_attention_factor
from rope_jax.rope.methods.interpolation import position_interpolation
from rope_jax.rope.relative import STANDSTILL, RelativeScale, compose

# Attention factors by the names under which vLLM and SGLang read them.
MSCALES = ("short_mscale", "long_mscale")

# `rope_type` -> keys that it must and may have beside `rope_type` and `rope_theta`.
ROPE_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "linear": ({"factor"}, set()),
    "proportional": (set(), {"factor"}),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor"}, {"original_max_position_embeddings"}),
    "yarn": (
        {"factor"},
        {"original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate"},
    ),
    "longrope": (
        {"short_factor", "long_factor"},
        {"original_max_position_embeddings", "factor", "attention_factor", *MSCALES},
    ),
}

# Those that depend on the original context.
SCALED_FROM = ("llama3", "yarn", "longrope")


@dataclasses.dataclass(frozen=True)
class StoredRope:
    """The rotary positions of a `config.json`: base, scale vector, and the scaling in the file's own words."""

    base: float
    scale: ScaleVector
    block: dict


def read_rope(fields: Fields, head_dim: int, context: int, layer_types: bool) -> StoredRope:
    """Reads the rotary base, and the scaling as one scale vector, from the keys of any release of transformers.

    Args:
        layer_types: whether the model tells apart layers of full attention, which all of its layers are then.
    """
    present = [key for key in ("rope_scaling", "rope_parameters") if fields.values.get(key) not in (None, {})]
    blocks = [_block(fields, key, layer_types) for key in present]
    base = _agreed([fields, *blocks], "rope_theta", Fields.number, 10000.0)
    check_base(base)
    # transformers reads this from the top level too, and lets that one win.
    original = _agreed([fields, *blocks], "original_max_position_embeddings", Fields.integer, context)
    bare = [{key: value for key, value in block.values.items() if key != "rope_theta"} for block in blocks]
    if len(bare) == 2 and bare[0] != bare[1]:
        raise InputError(
            f"{fields.path}: rope_scaling is {shown(bare[0])} and rope_parameters {shown(bare[1])}: they describe one "
            "thing, so remove the one that is wrong"
        )
    block = dataclasses.replace(blocks[0], values=bare[0]) if blocks else Fields(fields.path, {"rope_type": "default"})
    kind = block.values["rope_type"]
    if fields.values.get("original_max_position_embeddings") is not None and kind not in SCALED_FROM:
        raise fields.error("original_max_position_embeddings", f"rope_type {kind} uses none; remove it")
    scale = scale_of(block, base, head_dim, context, original)
    resolved = {"original_max_position_embeddings": original} if kind in SCALED_FROM else {}
    return StoredRope(base, scale, {**block.values, **resolved})


def scale_of(block: Fields, base: float, head_dim: int, context: int, original: int) -> ScaleVector:
    """The scale vector that a block with all the keys of its `rope_type` describes."""
    return compose(identity(head_dim), _scaling(block, base, head_dim, context, original))


def _block(fields: Fields, key: str, layer_types: bool) -> Fields:
    if not isinstance(fields.values[key], dict):
        raise fields.error(key, "give an object")
    given = _of_layers(fields, key, layer_types)
    values = {name: value for name, value in given.items() if value is not None}
    # Up to transformers 4.42 the key was called "type".
    legacy = values.pop("type", None)
    kind = values.setdefault("rope_type", legacy or "default")
    block = Fields(fields.path, values, f"{key}.")
    if legacy is not None and legacy != kind:
        raise block.error("rope_type", f"{key}.type is {shown(legacy)}; remove one")
    if not isinstance(kind, str) or kind not in ROPE_KEYS:
        raise block.error(
            "rope_type",
            f"unsupported rope_scaling, since only {', '.join(ROPE_KEYS)} can be written as one scale vector; use a "
            "model with one of those",
        )
    if kind != "proportional":
        if values.get("partial_rotary_factor", 1) != 1:
            raise block.error("partial_rotary_factor", "only 1 is supported here: use a model that rotates whole heads")
        values.pop("partial_rotary_factor", None)
    required, optional = ROPE_KEYS[kind]
    for name in sorted(required - set(values)):
        raise InputError(f"{fields.path}: {key} has no {name}, which rope_type {kind} needs: add it")
    known = required | optional | {"rope_type", "rope_theta", "partial_rotary_factor"}
    for name in sorted(set(values) - known):
        raise block.error(name, f"unsupported rope_scaling for rope_type {kind}; remove the key")
    return block


def _of_layers(fields: Fields, key: str, layer_types: bool) -> dict:
    """The block of all layers, which a file may write once per type of layer."""
    values = fields.values[key]
    nested = {name: block for name, block in values.items() if isinstance(block, dict)}
    if not nested or len(nested) < sum(block is not None for block in values.values()):
        return values
    if layer_types and "full_attention" in nested:
        return nested["full_attention"]
    first, *others = nested.values()
    if any(block != first for block in others):
        raise fields.error(
            key,
            f"{', '.join(nested)} differ, and all layers of this model rotate alike: give one block for all of them",
        )
    return first


def _agreed(places: list[Fields], key: str, read: Callable[[Fields, str], float], default: float) -> Any:
    """The value of a key that may stand in several places, or the default where it stands in none."""
    found = {place.prefix + key: read(place, key) for place in places if place.values.get(key) is not None}
    if len(set(found.values())) > 1:
        values = ", ".join(f"{name} is {value}" for name, value in found.items())
        raise InputError(f"{places[0].path}: {values}: they describe one thing, so remove those that are wrong")
    return next(iter(found.values()), default)


def _scaling(block: Fields, base: float, head_dim: int, context: int, original: int) -> RelativeScale:
    factor = block.number
    match block.values["rope_type"]:
        case "default":
            return RelativeScale.create(np.ones(head_dim // 2))
        case "proportional":
            share = block.values.get("partial_rotary_factor", 1.0)
            if type(share) not in (int, float) or not 0 <= share <= 1:
                raise block.error("partial_rotary_factor", "give a number from 0 to 1, the share of pairs that rotate")
            rotating = np.arange(head_dim // 2) < int(share * head_dim // 2)
            interpolated = position_interpolation(head_dim, factor("factor", 1.0)).factors
            return RelativeScale.create(np.where(rotating, interpolated, STANDSTILL))
        case "linear":
            return position_interpolation(head_dim, factor("factor"))
        case "llama3":
            low, high = factor("low_freq_factor"), factor("high_freq_factor")
            return llama3(frequencies(base, head_dim), factor("factor"), original, low, high)
        case "yarn":
            return yarn(
                base,
                head_dim,
                factor("factor"),
                original,
                beta_fast=factor("beta_fast", 32.0),
                beta_slow=factor("beta_slow", 1.0),
                truncate=block.boolean("truncate", True),
                attention_factor=factor("attention_factor") if "attention_factor" in block.values else None,
            )
        case "longrope":
            short, long = block.values["short_factor"], block.values["long_factor"]
            if short != long:
                raise InputError(
                    f"{block.path}: {block.prefix}short_factor and {block.prefix}long_factor differ: such a model "
                    "switches frequencies at its original length, which one scale vector cannot express and which "
                    "corrupts a LLaMA's KV cache; set both to the list to use at every length"
                )
            if not isinstance(long, list) or not all(type(value) in (int, float) for value in long):
                raise block.error("long_factor", "give a list of numbers")
            if "attention_factor" in block.values:
                attention_factor = factor("attention_factor")
            else:
                extension = factor("factor", context / original)
                attention_factor = longrope_attention_factor(max(extension, 1.0), original)
            for name in MSCALES:
                if block.values.get(name, attention_factor) != attention_factor:
                    raise block.error(name, f"the attention factor is {attention_factor}; remove one")
            return explicit(long, head_dim, attention_factor=attention_factor)
        case kind:
            raise AssertionError(f"rope_type {kind} is in ROPE_KEYS and not here")
