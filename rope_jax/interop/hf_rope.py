"""Rotary positions as `config.json` describes them: one base and one scale vector."""

from __future__ import annotations

from pathlib import Path

from rope_jax.errors import InputError
from rope_jax.interop.json_fields import boolean, integer, number, shown, unusable
from rope_jax.rope.embedding import ScaleVector, frequencies, identity
from rope_jax.rope.methods.by_parts import llama3, yarn
from rope_jax.rope.methods.explicit import explicit, longrope_attention_factor
from rope_jax.rope.methods.interpolation import position_interpolation
from rope_jax.rope.relative import RelativeScale, compose

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


def read_rope(path: Path, raw: dict, head_dim: int, context: int) -> tuple[float, ScaleVector]:
    """Reads base and scaling of the rotary positions, from the keys of any release of transformers.

    Args:
        path: `config.json`, for messages.
        raw: what it holds.
        head_dim: head dimension D.
        context: its `max_position_embeddings`.

    Returns:
        Rotary base, and the scaling as one scale vector.

    Raises:
        InputError: naming the file, the key, its value and the fix.
    """
    blocks = {
        key: _rope_block(path, key, raw[key])
        for key in ("rope_scaling", "rope_parameters")
        if raw.get(key) not in (None, {})
    }
    bases = {
        name: number(path, where, "rope_theta", name=name)
        for name, where in [("rope_theta", raw)] + [(f"{key}.rope_theta", b) for key, b in blocks.items()]
        if where.get("rope_theta") is not None
    }
    base = _agreed(path, bases, 10000.0)
    if base <= 1:
        raise unusable(path, "rope_theta", base, "it must be above 1 (LLaMA2 uses 10000)")
    # transformers reads these from the top level too, and lets that one win.
    top = {"original_max_position_embeddings": raw.get("original_max_position_embeddings")}
    lengths = {
        name: integer(path, where, "original_max_position_embeddings")
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
        raise unusable(
            path, "original_max_position_embeddings", original, f"{kind} rotary positions use none; remove it"
        )
    plain = identity(head_dim)
    if kind == "default":
        return base, plain
    return base, compose(plain, _scaling(path, key, block, base, head_dim, context, original))


def _rope_block(path, key, block) -> dict:
    if not isinstance(block, dict):
        raise unusable(path, key, block, "give an object")
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
        raise unusable(
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


def _scaling(path, key, block, base, head_dim, context, original) -> RelativeScale:
    def given(name, default=None):
        return number(path, block, name, default, name=f"{key}.{name}")

    match block["rope_type"]:
        case "linear":
            return position_interpolation(head_dim, given("factor"))
        case "llama3":
            return llama3(
                frequencies(base, head_dim),
                given("factor"),
                original,
                given("low_freq_factor"),
                given("high_freq_factor"),
            )
        case "yarn":
            return yarn(
                base,
                head_dim,
                given("factor"),
                original,
                beta_fast=given("beta_fast", 32.0),
                beta_slow=given("beta_slow", 1.0),
                truncate=boolean(path, block, "truncate", True),
                attention_factor=given("attention_factor") if "attention_factor" in block else None,
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
                attention_factor = given("attention_factor")
            else:
                extension = given("factor", context / original)
                attention_factor = longrope_attention_factor(max(extension, 1.0), original)
            if not isinstance(long, list) or not all(type(value) in (int, float) for value in long):
                raise unusable(path, f"{key}.long_factor", long, "give a list of numbers")
            return explicit(long, head_dim, attention_factor=attention_factor)
        case kind:
            raise AssertionError(f"rope_type {kind} is in ROPE_KEYS and not here")
