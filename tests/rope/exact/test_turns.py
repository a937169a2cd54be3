"""Fixed-point turns against Python's integers and float64."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.errors import InputError
from rope_jax.rope.embedding import frequencies, periods, phases
from rope_jax.rope.exact.turns import Turns, divide, exact_frequencies, exact_phases, multiply

UINT32 = st.integers(0, 2**32 - 1)
FACTORS = st.floats(2.0**-6, 1e6, width=32)


def integer(turns):
    return (np.asarray(turns.high).astype(object) << 32) + np.asarray(turns.low).astype(object)


@settings(deadline=None, max_examples=100)
@given(UINT32, UINT32)
def test_product(a, b):
    high, low = multiply(jnp.uint32(a), jnp.uint32(b))
    assert (int(high) << 32) + int(low) == a * b


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**63 - 1), FACTORS)
def test_quotient_is_that_of_rationals(units, factor):
    turns = Turns(np.uint32(units >> 32), np.uint32(units & 0xFFFFFFFF))
    quotient = jax.jit(divide)(turns, np.float32(factor))
    exact = Fraction(units) / Fraction(factor)
    if factor >= 0.5:
        assert int(integer(quotient)) == int(exact) % 2**64
    else:
        # The bits that a large quotient gains at its end are those the division dropped.
        assert (int(exact) - int(integer(quotient))) % 2**64 < Fraction(1) / Fraction(factor)


@pytest.mark.parametrize(("base", "head_dim"), [(10000.0, 128), (500000.0, 64)])
@pytest.mark.parametrize("position", [0, 1, 2**14, 2**20, 2**24, 10_000_000, 2**31 - 1])
def test_angles_far_out(base, head_dim, position):
    rng = np.random.default_rng(position)
    factors = (1 + 31 * rng.random(head_dim // 2)).astype(np.float32)
    angles = exact_phases(jnp.array([position]), exact_frequencies(base, head_dim), factors)[0]
    # In float64, m theta / f is off by 2^-53 of itself: 2e-7 rad at 2^31.
    exact = position * base ** -(np.arange(0, head_dim, 2) / head_dim) / factors.astype(np.float64)
    error = np.angle(np.exp(1j * (np.asarray(angles, np.float64) - exact)))
    assert np.abs(error).max() < 2e-6
    assert np.abs(np.asarray(angles)).max() <= np.float32(np.pi)


def test_float32_is_not_enough_where_turns_are():
    position = np.array([2**20], np.int32)
    exact = 2.0**20 * 10000.0 ** -(np.arange(0, 128, 2) / 128)
    plain = np.asarray(phases(jnp.asarray(position), periods(10000.0, 128), np.ones(64, np.float32)))[0]
    turns = np.asarray(exact_phases(jnp.asarray(position), exact_frequencies(10000.0, 128), np.ones(64, np.float32)))[0]
    plain, turns = (np.abs(np.angle(np.exp(1j * (x.astype(np.float64) - exact)))).max() for x in (plain, turns))
    assert turns < 1e-4 < plain


def test_float32_frequencies_are_taken_as_they_are():
    theta = frequencies(10000.0, 32)
    exact = theta.astype(np.float64) / (2 * np.pi) * 2.0**64
    np.testing.assert_allclose(integer(Turns.create(theta)).astype(float), exact, rtol=1e-15)
    np.testing.assert_allclose(Turns.create(theta).radians, theta, rtol=1e-6)


@jax.jit
def sum_of_phases(factors, position):
    return exact_phases(position[None], exact_frequencies(10000.0, 16), factors).sum()


GRADIENT = jax.jit(jax.grad(sum_of_phases))
FORWARD = jax.jit(lambda factors, position: jax.jvp(lambda f: sum_of_phases(f, position), (factors,), (factors,))[1])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**17), st.integers(0, 2**31))
def test_derivative_is_minus_the_angle_over_the_factor(position, seed):
    factors = (1 + 3 * np.random.default_rng(seed).random(8)).astype(np.float32)
    expected = -position * 10000.0 ** -(np.arange(0, 16, 2) / 16) / factors.astype(np.float64) ** 2
    np.testing.assert_allclose(GRADIENT(factors, jnp.int32(position)), expected, rtol=1e-5, atol=1e-8)
    forward = FORWARD(factors, jnp.int32(position))
    np.testing.assert_allclose(forward, (expected * factors).sum(), rtol=1e-5, atol=1e-7)


def test_out_of_range():
    with pytest.raises(InputError) as error:
        Turns.create([4.0])
    assert error.value.field == "theta"
    with pytest.raises(InputError) as error:
        exact_frequencies(1.0, 8)
    assert error.value.field == "base"
