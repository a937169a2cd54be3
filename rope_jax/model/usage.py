"""How much a model uses its frequency pairs and distances: energies and attention, from one forward pass a text."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int

from rope_jax.errors import InputError
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import Inputs, forward, queries_and_keys, rms_norm, waves_of
from rope_jax.model.usage_file import Usage
from rope_jax.rope.embedding import ScaleVector, rotate

# Distances times bins that are sorted at a time.
_AT_ONCE = 1 << 23


def measure_usage(
    params: dict,
    config: LlamaConfig,
    rope: ScaleVector,
    texts: Iterable[Int[np.ndarray, " tokens"]],
    about: Mapping[str, Any],
    *,
    queries: int = 256,
) -> Usage:
    """Measures a model on texts of equal length, its own scaling as it is.

    Memory holds the states of every layer, `layers T E` numbers.

    Args:
        params: parameters of `Llama`, stacked layers.
        about: what `Usage.about` says.
        queries: positions of a text, evenly spread, whose attention is measured.
    """
    energy, attention, edges, lengths = [], [], (), set()
    for tokens in texts:
        lengths.add(len(tokens))
        edges = distance_edges(len(tokens))
        picked = tuple(np.unique(np.linspace(1, len(tokens) - 1, queries).astype(int)).tolist())
        measured = _measure(params, config, rope, jnp.asarray(tokens, jnp.int32)[None], picked)
        for means, found in zip((energy, attention), jax.device_get(measured)):
            means.append(found.astype(np.float64))
    if len(lengths) != 1:
        raise InputError("`texts` must be at least one, all of the same number of tokens")
    about = {**about, "texts": len(energy), "tokens": len(energy) * lengths.pop()}
    return Usage(np.mean(energy, axis=0), edges, np.mean(attention, axis=0), about)


def distance_edges(length: int) -> tuple[int, ...]:
    """Edges of bins of distances below `length`: 0, 1, 2, 3, 4, 6, 8, 12 ..., two bins per doubling."""
    edges, power = [0, 1], 2
    while power < length:
        edges += [power, power * 3 // 2]
        power *= 2
    return (*(edge for edge in edges if edge < length), length)


@partial(jax.jit, static_argnames=("config", "picked"))
def _measure(params, config, rope, tokens, picked):
    """Energies `[layers, heads, D/2]` and attention by distance `[layers, heads, bins]` of one text."""
    length = tokens.shape[1]
    positions = jnp.arange(length)[None]
    inputs = Inputs(tokens, positions, jnp.ones_like(tokens))
    embedded, outputs, _ = forward(params, config, rope, inputs, inspect=lambda states: states).inspected
    states = jnp.concatenate([embedded[None], outputs[:-1]])  # what each layer reads
    scales = rope.by_layer(config.num_layers, config.head_dim // 2)

    def layer(read):
        x, weights, scale = read
        normed = rms_norm(x, weights["attention_norm"], config)
        query, key = queries_and_keys(weights["attention"], config, normed)
        group = config.num_heads // config.num_kv_heads
        energy = _pair_norms(query) * jnp.repeat(_pair_norms(key), group, axis=0)
        cos, sin = waves_of(config, positions, scale)
        at = jnp.asarray(picked)
        query = rotate(query[:, at], cos[:, at], sin[:, at])[0] * jnp.asarray(config.head_dim**-0.5, query.dtype)
        key = rotate(key, cos, sin)[0]
        return energy, _attention(query.reshape(len(picked), -1, group, config.head_dim), key, at, config)

    return jax.lax.map(layer, (states, params["layers"], scales))


def _pair_norms(x) -> Float32[Array, "heads pairs"]:
    """Mean over tokens of the norms of pairs `(x[i], x[i + D/2])`."""
    first, second = jnp.split(x[0].astype(jnp.float32), 2, axis=-1)
    return jnp.sqrt(first * first + second * second).mean(axis=0)


def _attention(query, key, at, config) -> Float32[Array, "heads bins"]:
    """Mean over queries of the attention in each bin of distances, without that on the first token."""
    length = len(key)
    starts = jnp.asarray(distance_edges(length)[:-1])

    def of_query(one):
        query, position = one
        distance = position - jnp.arange(length)
        seen = (distance >= 0) & (distance < (config.sliding_window or length))
        logits = jnp.einsum("kgd,tkd->kgt", query, key, preferred_element_type=jnp.float32)
        attention = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf), axis=-1)
        bins = jnp.searchsorted(starts, distance, side="right") - 1
        # A negative bin, of what lies ahead, is no bin; the first token is left out.
        kept = jax.nn.one_hot(bins.at[0].set(-1), len(starts), dtype=jnp.float32)
        return jnp.einsum("kgt,tn->kgn", attention, kept).reshape(-1, len(starts))

    at_once = max(_AT_ONCE // (length * len(starts)), 1)
    return jax.lax.map(of_query, (query, at), batch_size=at_once).mean(axis=0)
