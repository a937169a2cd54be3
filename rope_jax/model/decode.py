"""Greedy decoding over a KV cache: one compiled function for prompts, one for the steps after them.

Shapes: B rows, T new tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from rope_jax.model import cpu
from rope_jax.model.cache import Cache
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import Inputs, forward
from rope_jax.rope.embedding import ScaleVector

# Steps between two looks of the host at what was decoded; it checks stop strings and grows the cache there.
SEGMENT = 32


def decoding_weights(params, config: LlamaConfig):
    """The parameters as decoding reads them: in the computation dtype, layer by layer, the head as `[V, E]`.

    A step reads every weight once and does little with it, so it must neither convert nor slice any. A scan over
    stacked layers would slice weights, and the cache, at each step.

    Args:
        params: parameters of `Llama`, without boxes, sharded or not.
        config: its config.

    Returns:
        The parameters, with a tuple of trees as `layers`, and `[V, E]` as `head` unless it is tied.
    """
    top = {name: value for name, value in params.items() if name != "layers"}
    if not config.tie_embeddings:
        top["head"] = top["head"].T
    return {"layers": _separate(params["layers"], config), **jax.tree.map(lambda x: x.astype(config.dtype), top)}


@partial(jax.jit, static_argnames="config")
def _separate(layers, config):
    layers = jax.tree.map(lambda x: x.astype(config.dtype), layers)
    return tuple(jax.tree.map(itemgetter(i), layers) for i in range(config.num_layers))


@partial(jax.jit, static_argnames=("config", "replicated"), donate_argnames="cache")
def prefill(
    weights,
    rope: ScaleVector,
    tokens,
    cache: Cache,
    banned,
    *,
    config: LlamaConfig,
    replicated: NamedSharding | None = None,
):
    """Reads the next tokens of every prompt.

    Args:
        weights: from `decoding_weights`.
        rope: scale vector.
        tokens: int32 `[B, T]`.
        cache: with room for T tokens; donated.
        banned: bool `[V]`, tokens that may not come next.
        config: model config.
        replicated: sharding that gives every process the whole answer, or None.

    Returns:
        The most likely next token int32 `[B]`, and the cache.
    """
    logits, cache = _next_logits(weights, config, rope, tokens, cache)
    return _constrained(cpu.most_likely(logits, banned), replicated), cache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Limits:
    """When decoding ends.

    Attributes:
        left: int32 `[B]`, tokens that each row may still produce; 0 for rows that have ended.
        stops: bool `[V]`, tokens that end a row.
        steps: int32 scalar, steps at most, up to `SEGMENT`.
        unstopped: int32 scalar, the number of first steps in which `stops` have no probability.
    """

    left: Any
    stops: Any
    steps: Any
    unstopped: Any


@partial(jax.jit, static_argnames=("config", "replicated"), donate_argnames="cache")
def decode(
    weights,
    rope: ScaleVector,
    token,
    cache: Cache,
    limits: Limits,
    *,
    config: LlamaConfig,
    replicated: NamedSharding | None = None,
):
    """Greedy decoding until every row has ended, or for `limits.steps`.

    Args:
        weights: from `decoding_weights`.
        rope: scale vector.
        token: int32 `[B]`, the newest tokens, not in the cache yet.
        cache: with room for `limits.steps` tokens; donated.
        limits: when rows end.
        config: model config.
        replicated: sharding that gives every process the whole answer, or None.

    Returns:
        int32 `[B, SEGMENT]` tokens, valid as far as steps were made and the row had not ended; the newest token; and
        the cache.
    """

    def unfinished(carry):
        step, _, _, _, left = carry
        return (step < limits.steps) & jnp.any(left > 0)

    def advance(carry):
        step, token, cache, new, left = carry
        logits, cache = _next_logits(weights, config, rope, token[:, None], cache)
        token = cpu.most_likely(logits, limits.stops & (step < limits.unstopped))
        new = jax.lax.dynamic_update_slice(new, token[:, None], (0, step))
        return step + 1, token, cache, new, jnp.where(limits.stops[token], 0, jnp.maximum(left - 1, 0))

    new = jnp.zeros((len(token), SEGMENT), jnp.int32)
    start = jnp.int32(0), token, cache, new, limits.left
    _, token, cache, new, _ = jax.lax.while_loop(unfinished, advance, start)
    return _constrained(new, replicated), token, cache


def _next_logits(weights, config, rope, tokens, cache):
    """float32 logits `[B, V]` after the last of the new tokens, and the cache with them."""
    # Padding in front of a prompt has no position; no query reads it.
    positions = jnp.maximum(cache.used + jnp.arange(tokens.shape[1]) - cache.first[:, None], 0)
    # Only the last state meets the vocabulary: T x V logits are never formed.
    states, cache, _ = forward(weights, config, rope, Inputs(tokens, positions), cache=cache, tail=1)
    return cpu.projection(states[:, 0], weights["embedding" if config.tie_embeddings else "head"]), cache


def _constrained(x, sharding):
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)
