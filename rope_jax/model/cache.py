"""The KV cache of decoding, preallocated: S slots for tokens in every row."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from rope_jax.model.arrays import Key
from rope_jax.model.config import LlamaConfig
from rope_jax.model.flash import padded


class LayerCache(NamedTuple):
    """Keys and values of one layer. All rows end in the same slot, so shorter prompts begin in later slots."""

    keys: jax.Array  # `[B, K, D, S]`, laid out as the product with queries reads them
    values: jax.Array  # `[B, K, S, D]`, laid out as the product with weights reads them
    first: jax.Array  # int32 `[B]`, slot of each row's position 0; slots before it are padding
    used: jax.Array  # int32 scalar, number of slots written

    def append(self, key: Key, value: Key) -> LayerCache:
        """The cache with the keys and values of the next tokens in its next slots."""
        write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=self.used)
        keys = write(self.keys, key.transpose(0, 2, 3, 1).astype(self.keys.dtype), axis=3)
        values = write(self.values, value.swapaxes(1, 2).astype(self.values.dtype), axis=2)
        return LayerCache(keys, values, self.first, self.used + key.shape[1])


class Cache(NamedTuple):
    """`LayerCache` of all layers. Each layer has arrays of its own, so that a step writes them in place."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    first: jax.Array
    used: jax.Array

    @property
    def slots(self) -> int:
        return self.values[0].shape[2]

    @property
    def layers(self) -> tuple[LayerCache, ...]:
        return tuple(LayerCache(*pair, self.first, self.used) for pair in zip(self.keys, self.values))

    @classmethod
    def of(cls, layers: list[LayerCache]) -> Cache:
        keys, values, first, used = zip(*layers)
        return cls(keys, values, first[0], used[0])


def empty_cache(config: LlamaConfig, first, slots: int, dtype: str, sharding: NamedSharding | None = None) -> Cache:
    """A cache without any token, its rows and heads sharded as the first two axes of `sharding` say."""
    rows_and_heads, width = (len(first), config.num_kv_heads), config.head_dim
    shapes = (*rows_and_heads, width, slots), (*rows_and_heads, slots, width)
    keys, values = (
        tuple(jnp.zeros(shape, dtype, device=sharding) for _ in range(config.num_layers)) for shape in shapes
    )
    return Cache(keys, values, jnp.asarray(first), jnp.int32(0))


def grown(cache: Cache, slots: int) -> Cache:
    """The cache with `slots` slots, at least as many as it has."""
    keys, values = (
        tuple(_padded(x, axis, slots) for x in layers) for layers, axis in ((cache.keys, 3), (cache.values, 2))
    )
    return Cache(keys, values, cache.first, cache.used)


_padded = jax.jit(padded, static_argnums=(1, 2))
