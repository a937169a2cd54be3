"""The KV cache of decoding, preallocated.

Shapes: B rows, T new tokens, S slots, K key heads, D head dimension.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from rope_jax.model.config import LlamaConfig
from rope_jax.model.flash import padded


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer. All rows end in the same slot, so shorter prompts begin in later slots.

    Attributes:
        keys: `[B, K, D, S]`, laid out as the product with queries reads them.
        values: `[B, K, S, D]`, laid out as the product with weights reads them.
        first: int32 `[B]`, slot of each row's position 0; slots before it are padding.
        used: int32 scalar, number of slots written.
    """

    keys: jax.Array
    values: jax.Array
    first: jax.Array
    used: jax.Array

    def append(self, key: Float[Array, "b t k d"], value: Float[Array, "b t k d"]) -> LayerCache:
        """The cache with the keys and values of the next tokens in its next slots."""
        write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=self.used)
        return LayerCache(
            write(self.keys, key.transpose(0, 2, 3, 1).astype(self.keys.dtype), axis=3),
            write(self.values, value.swapaxes(1, 2).astype(self.values.dtype), axis=2),
            self.first,
            self.used + key.shape[1],
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of all layers, each an array of its own, so that a step writes them in place.

    Attributes:
        keys: `[B, K, D, S]` for each layer.
        values: `[B, K, S, D]` for each layer.
        first: int32 `[B]`, slot of each row's position 0.
        used: int32 scalar, number of slots written.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    first: jax.Array
    used: jax.Array

    @property
    def slots(self) -> int:
        """S."""
        return self.values[0].shape[2]

    @property
    def layers(self) -> tuple[LayerCache, ...]:
        """The cache layer by layer."""
        return tuple(LayerCache(*pair, self.first, self.used) for pair in zip(self.keys, self.values))

    @classmethod
    def of(cls, layers: list[LayerCache]) -> Cache:
        """The cache of a model from those of its layers."""
        keys, values = tuple(layer.keys for layer in layers), tuple(layer.values for layer in layers)
        return cls(keys, values, layers[0].first, layers[0].used)


def empty_cache(config: LlamaConfig, first, slots: int, dtype: str, sharding: NamedSharding | None = None) -> Cache:
    """A cache without any token.

    Args:
        config: model config.
        first: int32 `[B]`, slot of each row's first token.
        slots: S.
        dtype: of keys and values.
        sharding: of rows and heads, the first two axes; None for one device.

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
    """The cache with `slots` slots, at least as many as it has."""
    keys, values = (
        tuple(_padded(x, axis, slots) for x in layers) for layers, axis in ((cache.keys, 3), (cache.values, 2))
    )
    return Cache(keys, values, cache.first, cache.used)


_padded = jax.jit(padded, static_argnums=(1, 2))
