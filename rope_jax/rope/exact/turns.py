"""Rotary angles as fixed-point turns: exact at any position, on any backend, without 64-bit arithmetic.

A float32 product `m * theta` is off by 1e-3 rad at m = 16k and 6e-2 rad at m = 1M. Here a frequency is the share
of a turn that a pair makes per position, as a 64-bit fraction in two uint32 limbs. Multiplying by a position wraps
around, and the wrap-around *is* the remainder modulo a turn: the angle at position m is off by m * 2^-64 turns.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int, UInt32
from numpy.typing import ArrayLike

from rope_jax.errors import InputError
from rope_jax.rope.arrays import AnyArray
from rope_jax.rope.checks import check_base, check_head_dim


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Turns:
    """Fractions of a turn, `high * 2^-32 + low * 2^-64` with uint32 limbs; a pytree, mapped like an array.

    Attributes:
        rough: whether counting may round a step to 2^-30 turns at lengths up to 2^15: an angle is then up to 1e-4 rad
            off, and counting takes a third of the time; static.
    """

    high: AnyArray
    low: AnyArray
    rough: bool = dataclasses.field(default=False, metadata={"static": True})

    @classmethod
    def create(cls, theta: ArrayLike, rough: bool = False) -> Turns:
        """Turns per position of frequencies, radians per position, from 0 to below pi; on the host, in float64.

        Float32 values are taken as exactly what they are.
        """
        turns = np.asarray(theta, np.float64) / (2 * np.pi)
        if not ((turns >= 0) & (turns < 0.5)).all():
            raise InputError("`theta` has a frequency outside 0 .. pi: a pair makes less than half a turn per position")
        high = np.floor(turns * 2.0**32)
        low = np.floor((turns * 2.0**32 - high) * 2.0**32)
        return cls(high.astype(np.uint32), low.astype(np.uint32), rough)

    def roughly(self) -> Turns:
        """The same fractions, to be counted roughly."""
        return dataclasses.replace(self, rough=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the fractions."""
        return np.shape(self.high)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def radians(self) -> jax.Array:
        """float32 `[...]`, the fractions as radians from 0 to 2 pi; rounded, so for sizes and not for angles."""
        high, low = (jnp.asarray(limb, jnp.float32) for limb in (self.high, self.low))
        return (high * jnp.float32(2.0**-32) + low * jnp.float32(2.0**-64)) * jnp.float32(2 * np.pi)


def exact_frequencies(base: float, head_dim: int) -> Turns:
    """Rotary frequencies `theta_i = base^(-2i/D)`, turns per position `[D/2]`, not rounded to float32."""
    check_base(base)
    check_head_dim(head_dim)
    return Turns.create(float(base) ** -(np.arange(0, head_dim, 2) / head_dim))


def exact_turns(theta: Float32[AnyArray, " pairs"] | Turns) -> Turns:
    """Frequencies as turns; float32 ones, which must not be traced, as exactly what they are."""
    return theta if isinstance(theta, Turns) else Turns.create(theta)


def divide(turns: Turns, factor: Float32[AnyArray, "*shape"]) -> Turns:
    """Turns per position of an extended pair, `theta / f`, exact for the given float32 factor.

    Long division by the factor's 24-bit significand, a byte at a time; its exponent is a shift. Turns are below one
    half, factors normal numbers above 0. The quotient is rounded down to 2^-64 turns; whole turns drop out.
    """
    bits = jax.lax.bitcast_convert_type(jnp.asarray(factor, jnp.float32), jnp.uint32)
    significand = (bits & jnp.uint32(0x7FFFFF)) | jnp.uint32(0x800000)
    # theta / f = (2^24 theta / significand) / 2^(exponent + 1), and the bracket is below 2 theta, below one.
    shift = (bits >> 23).astype(jnp.int32) - 126
    limbs = jnp.stack(jnp.broadcast_arrays(jnp.uint32(turns.high), jnp.uint32(turns.low), jnp.uint32(0)))

    def digit(place, state):
        remainder, high, low = state
        byte = (limbs[place // 4] >> (24 - 8 * (place % 4)).astype(jnp.uint32)) & jnp.uint32(255)
        dividend = (remainder << 8) | byte  # below 2^32, because a remainder is below 2^24
        quotient = dividend // significand
        return dividend - quotient * significand, (high << 8) | (low >> 24), (low << 8) | quotient

    start = jnp.zeros_like(significand)
    _, high, low = jax.lax.fori_loop(0, 11, digit, (start, start, start))
    high, low = _shift_left(*_shift_right(high, low, jnp.maximum(shift, 0)), jnp.maximum(-shift, 0))
    return Turns(high, low, turns.rough)


def angle(turns: Turns, position: Int[AnyArray, "*shape"]) -> UInt32[Array, "*result"]:
    """Angle at a position below 2^32, in units of 2^-32 turns."""
    position, high = jnp.asarray(position, jnp.uint32), jnp.asarray(turns.high)
    return position * high + multiply(position, turns.low)[0]


@jax.custom_jvp
def exact_phases(
    positions: Int[AnyArray, "*batch"], theta: Turns, factors: Float32[AnyArray, " pairs"]
) -> Float32[Array, "*batch pairs"]:
    """Rotary angles `m * theta_i / f_i`, radians from -pi to pi, reduced to a turn exactly before they become float32.

    Off by less than 1e-6 rad at every position, where `phases` is off by 6e-2 rad at 1M. Differentiable in the
    factors (and in them only) in forward and reverse mode.
    """
    step = divide(theta, factors)
    share = jax.lax.bitcast_convert_type(angle(step, positions[..., None]), jnp.int32)
    return share.astype(jnp.float32) * jnp.float32(2 * np.pi * 2.0**-32)


@exact_phases.defjvp
def _exact_phases_jvp(primals, tangents):
    positions, theta, factors = primals
    # A derivative needs no more than float32: d (m theta / f) = -m theta / f^2 df.
    slope = -(theta.radians / factors) / factors
    change = positions.astype(jnp.float32)[..., None] * (slope * tangents[2])
    return exact_phases(positions, theta, factors), change


def multiply(a: AnyArray, b: AnyArray) -> tuple[AnyArray, AnyArray]:
    """The 64-bit product of two uint32, as uint32 high and low limbs."""
    half = jnp.uint32(0xFFFF)
    a_high, a_low, b_high, b_low = a >> 16, a & half, b >> 16, b & half
    low, middle = a_low * b_low, a_high * b_low
    cross = a_low * b_high + (middle & half) + (low >> 16)  # at most 2^32 - 1
    return a_high * b_high + (middle >> 16) + (cross >> 16), a * b


def _shift_right(high, low, by):
    # Shifts of 32 and more give 0, so each of these terms is there exactly where it should be.
    by = by.astype(jnp.uint32)
    shift, back = jax.lax.shift_right_logical, jax.lax.shift_left
    return shift(high, by), shift(low, by) | back(high, 32 - by) | shift(high, by - 32)


def _shift_left(high, low, by):
    by = by.astype(jnp.uint32)
    shift, back = jax.lax.shift_left, jax.lax.shift_right_logical
    return shift(high, by) | back(low, 32 - by) | shift(low, by - 32), shift(low, by)
