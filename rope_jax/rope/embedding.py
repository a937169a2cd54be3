"""Rotary position embedding as pure functions of an explicit scale vector (theta_i / f_i)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int
from numpy.typing import ArrayLike

from rope_jax.rope.arrays import AnyArray
from rope_jax.rope.checks import check_base, check_head_dim


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScaleVector:
    """What context extension changes: pair `i` rotates at `theta_i / factors[i]`.

    A pytree of arrays, passed *into* the model, so that swapping it recompiles nothing and
    `jax.grad` and `jax.vmap` over it work.

    Attributes:
        factors: float32 `[D/2]`, or `[layers, D/2]` for a vector per layer; 1 extrapolates, `s` interpolates.
        attention_factor: float32 scalar, or `[layers]`, that multiplies cos and sin; attention logits scale by its
            square.
    """

    factors: jax.Array
    attention_factor: jax.Array

    @classmethod
    def create(cls, factors: ArrayLike, attention_factor: ArrayLike = 1.0) -> ScaleVector:
        """From anything array-like, as float32.

        Example:
            >>> ScaleVector.create([1, 1, 2, 2]).factors.dtype
            dtype('float32')
        """
        return cls(jnp.asarray(factors, jnp.float32), jnp.asarray(attention_factor, jnp.float32))

    def by_layer(self, layers: int, pairs: int) -> ScaleVector:
        """The same with numbers for each layer: factors `[layers, pairs]`, attention factors `[layers]`."""
        factors = jnp.broadcast_to(self.factors, (layers, pairs))
        return ScaleVector(factors, jnp.broadcast_to(self.attention_factor, layers))


def identity(head_dim: int) -> ScaleVector:
    """The scale vector that changes nothing: factors of 1, `[D/2]`, attention factor 1.

    Example:
        >>> print(identity(8).factors)
        [1. 1. 1. 1.]
    """
    return ScaleVector.create(np.ones(head_dim // 2, np.float32))


def periods(base: float, head_dim: int) -> Float32[np.ndarray, " pairs"]:
    """Positions per radian of each pair: `base^(2i/D)`, the inverse of `frequencies`.

    The float32 roundings are those of Hugging Face's `base ** (arange(0, d, 2) / d)`, because the model that is
    extended was trained with, and will be served with, those. They are taken on the host, so that every backend
    gets the same numbers.
    """
    check_base(base)
    check_head_dim(head_dim)
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return (float(base) ** exponents.astype(np.float64)).astype(np.float32)


def frequencies(base: float, head_dim: int) -> Float32[np.ndarray, " pairs"]:
    """Rotary frequencies `theta_i = base^(-2i/D)`, radians per position (RoFormer, arXiv 2104.09864, section 3.2.2).

    They decrease from 1, and are rounded as Hugging Face rounds them.

    Example:
        >>> print(frequencies(10000.0, 8))
        [1.    0.1   0.01  0.001]
    """
    return np.float32(1) / periods(base, head_dim)


def phases(
    positions: Int[AnyArray, "*batch"], period: Float32[AnyArray, " pairs"], factors: Float32[AnyArray, " pairs"]
) -> Float32[Array, "*batch pairs"]:
    """Rotary angles `m * theta_i / f_i`, radians, not reduced modulo 2 pi; `period` is from `periods`.

    A broadcast multiply in float32: a matmul would run in bfloat16 on TPU, and a bfloat16 frequency is off by
    whole periods at 16k. The order of operations, `m * (1 / (f * period))`, is that of Hugging Face's `longrope`, so
    that an exported vector gives the same bits there.

    Example:
        >>> print(phases(np.arange(3), periods(10000.0, 4), np.float32([1, 2])))
        [[0.    0.   ]
         [1.    0.005]
         [2.    0.01 ]]
    """
    frequency = jnp.asarray(1.0 / (factors * period), jnp.float32)
    return jnp.asarray(positions, jnp.float32)[..., None] * frequency


def rotate(
    x: Float[AnyArray, "batch length heads dim"],
    cos: Float32[AnyArray, "#batch length pairs"],
    sin: Float32[AnyArray, "#batch length pairs"],
) -> Float[Array, "batch length heads dim"]:
    """Rotates each pair `(x[i], x[i + D/2])` of queries or keys, Hugging Face's layout, by its angle, in float32.

    Cosine and sine are times the attention factor (YaRN, arXiv 2309.00071, section 3.4).

    Example:
        >>> quarter = phases(np.arange(2)[None], np.float32([2 / np.pi]), np.float32([1]))  # pi / 2 per position
        >>> turned = rotate(jnp.ones((1, 2, 1, 2)), jnp.cos(quarter), jnp.sin(quarter))
        >>> print(turned[0, :, 0].round(3))
        [[ 1.  1.]
         [-1.  1.]]
    """
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
