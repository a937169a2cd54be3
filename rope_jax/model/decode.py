"""The decoder over a key-value cache: one compiled function for prompts, one for the steps after them.

Shapes: B rows, T new tokens, S cache slots, K key heads, D head dimension, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from rope_jax.model.attention import LayerCache
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import Block, RMSNorm
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of all layers; see `LayerCache`.

    Attributes:
        keys: a tuple of `[B, K, D, S]`, one for each layer.
        values: a tuple of `[B, K, S, D]`.
        first: int32 `[B]`, the slot of each row's position 0.
        used: int32 scalar, slots written so far.
    """

    keys: tuple
    values: tuple
    first: jax.Array
    used: jax.Array

    @property
    def slots(self) -> int:
        """S."""
        return self.values[0].shape[2]


def empty_cache(config: LlamaConfig, first, slots: int, dtype, sharding: NamedSharding | None) -> Cache:
    """A cache without any token.

    Args:
        config: model config.
        first: int32 `[B]`, slot of each row's first token.
        slots: S.
        dtype: of keys and values.
        sharding: of rows and heads, the first two axes, or None.

    Returns:
        The cache.
    """
    rows_and_heads, width = (len(first), config.num_kv_heads), config.head_dim
    shapes = (*rows_and_heads, width, slots), (*rows_and_heads, slots, width)
    keys, values = (
        tuple(jnp.zeros(shape, dtype, device=sharding) for _ in range(config.num_layers)) for shape in shapes
    )
    return Cache(keys, values, jnp.asarray(first), jnp.int32(0))


def grown(cache: Cache, slots: int) -> Cache:
    """The cache with more room behind.

    Args:
        cache: the cache.
        slots: S of the result, at least what it is.

    Returns:
        The larger cache.
    """
    keys, values = (
        tuple(_pad_slots(x, axis, slots) for x in layers) for layers, axis in ((cache.keys, 3), (cache.values, 2))
    )
    return Cache(keys, values, cache.first, cache.used)


@partial(jax.jit, static_argnames=("axis", "slots"))
def _pad_slots(x, axis, slots):
    return jnp.pad(x, [(0, slots - size if a == axis else 0) for a, size in enumerate(x.shape)])


@partial(jax.jit, static_argnames=("config", "replicated"), donate_argnames="cache")
def prefill(weights, rope: ScaleVector, tokens, cache: Cache, banned, *, config: LlamaConfig, replicated=None):
    """Reads the next tokens of every prompt.

    Args:
        weights: from `decoding_weights`.
        rope: scale vector.
        tokens: int32 `[B, T]`.
        cache: with room for T tokens; donated.
        banned: bool `[V]`, tokens that may not come next.
        config: model config.
        replicated: sharding that gives every process all of the answer, or None.

    Returns:
        The most likely next token int32 `[B]`, and the cache.
    """
    logits, cache = _forward(weights, config, rope, tokens, cache)
    return _constrained(_most_likely(logits, banned), replicated), cache


@partial(jax.jit, static_argnames=("config", "replicated"), donate_argnames="cache")
def decode(
    weights, rope: ScaleVector, token, cache: Cache, left, steps, stops, banned, *, config: LlamaConfig, replicated=None
):
    """Greedy decoding until every row has ended, for `steps` steps at most.

    Args:
        weights: from `decoding_weights`.
        rope: scale vector.
        token: int32 `[B]`, the newest tokens, not in the cache yet.
        cache: with room for `steps` tokens; donated.
        left: int32 `[B]`, tokens that each row may still produce; 0 for rows that have ended.
        steps: int32 `[2]`: steps at most, up to `SEGMENT`; and steps at the beginning in which `stops` are
            banned.
        stops: bool `[V]`, tokens that end a row.
        banned: bool `[V]`, tokens that never come.
        config: model config.
        replicated: sharding that gives every process all of the answer, or None.

    Returns:
        int32 `[B, SEGMENT]` tokens, of use as far as steps were made and the row had not ended; the newest
        token; the cache; and what is left.
    """

    def unfinished(carry):
        step, _, _, _, left = carry
        return (step < steps[0]) & jnp.any(left > 0)

    def advance(carry):
        step, token, cache, new, left = carry
        logits, cache = _forward(weights, config, rope, token[:, None], cache)
        token = _most_likely(logits, banned | (stops & (step < steps[1])))
        new = jax.lax.dynamic_update_slice(new, token[:, None], (0, step))
        return step + 1, token, cache, new, jnp.where(stops[token], 0, jnp.maximum(left - 1, 0))

    new = jnp.zeros((len(token), SEGMENT), jnp.int32)
    _, token, cache, new, left = jax.lax.while_loop(unfinished, advance, (jnp.int32(0), token, cache, new, left))
    new, left = (_constrained(x, replicated) for x in (new, left))
    return new, token, cache, left


def _forward(weights, config, rope, tokens, cache):
    """float32 logits `[B, V]` after the last of the new tokens, and the cache with them."""
    slots = cache.used + jnp.arange(tokens.shape[1])
    # Padding in front of a prompt is at no position; no query reads it.
    positions = jnp.maximum(slots - cache.first[:, None], 0)
    factors = jnp.broadcast_to(rope.factors, (config.num_layers, config.head_dim // 2))
    x = jnp.take(weights["embedding"], tokens, axis=0)
    layers = []
    for i, params in enumerate(weights["layers"]):
        layer = LayerCache(cache.keys[i], cache.values[i], cache.first, cache.used)
        # Of the last layer, only the last state is looked at.
        block = Block(config, tail=1 if i == config.num_layers - 1 else 0)
        x, layer = block.apply({"params": params}, x, factors[i], layer, rope.attention_factor, positions, None)
        layers.append(layer)
    # Only the last state meets the vocabulary: T x V logits are never formed.
    x = RMSNorm(config).apply({"params": weights["norm"]}, x[:, -1])
    logits = _projected(x, weights["embedding" if config.tie_embeddings else "head"])
    keys, values = tuple(layer.keys for layer in layers), tuple(layer.values for layer in layers)
    return logits, Cache(keys, values, cache.first, cache.used + tokens.shape[1])


def _projected(states, head):
    """float32 logits `[B, V]` of states `[B, E]`, by a head `[V, E]`."""
    product = partial(jnp.einsum, "be,ve->bv", preferred_element_type=jnp.float32)
    # Sums were faster on a CPU for 2 to 32 states, and far slower for one.
    if head.dtype != jnp.float32 or not 2 <= len(states) <= 32:
        return product(states, head)
    return jax.lax.platform_dependent(states, head, cpu=_projected_by_sums, default=product)


def _projected_by_sums(states, head):
    """Takes up to two fifths off the time that XLA's product of few states takes on a CPU."""
    return jnp.sum(head[:, :, None] * states.T, axis=1).T


def _most_likely(logits, banned):
    """The first of the largest logits that are not banned, int32 `[B]`."""
    logits = jnp.where(banned, -jnp.inf, logits)
    # `argmax` reduces pairs, which a CPU does not vectorise; two plain reductions take a third of its time.
    largest = jnp.max(logits, axis=-1, keepdims=True)
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    return jnp.min(jnp.where(logits == largest, ids, ids[-1]), axis=-1)


def _constrained(x, sharding):
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)


def replicated_like(sharding: NamedSharding | None) -> NamedSharding | None:
    """The sharding over the same mesh under which every device holds everything."""
    return None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())
