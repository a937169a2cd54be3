"""Counting by floor sums against counting every angle in Python's and NumPy's integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.rope.angles import angle_histograms
from rope_jax.rope.exact.counting import GUESSED, ROUGH, count_below, interval_counts
from rope_jax.rope.exact.turns import Turns, exact_frequencies

COUNT = jax.jit(interval_counts, static_argnums=2)
STEPS = st.one_of(
    st.integers(0, 2**63 - 1),
    st.sampled_from([0, 1, 2**63 - 1, 2**62, 2**60 + 1, 2**64 // 3, 2**64 // 106, 2**64 // 149 + 12345]),
    st.integers(0, 2**40),
)


def turns(units):
    units = np.asarray(units, np.uint64)
    return Turns((units >> np.uint64(32)).astype(np.uint32), units.astype(np.uint32))


def every_angle(step, length, intervals, bits=48):
    """Counts with the rounding that `count_below` states, one angle at a time."""
    step = step + (1 << (63 - bits)) >> (64 - bits)
    angles = np.arange(length, dtype=np.uint64) * np.uint64(step) % np.uint64(2**bits)
    edges = np.array([-(-k * 2**bits // intervals) for k in range(intervals)], np.uint64)
    return np.bincount(np.searchsorted(edges, angles, side="right") - 1, minlength=intervals)


@settings(deadline=None, max_examples=120)
@given(STEPS, st.integers(1, 3000), st.sampled_from([2, 16, 90, 360]))
def test_every_interval(step, length, intervals):
    np.testing.assert_array_equal(COUNT(turns(step), length, intervals), every_angle(step, length, intervals))


@settings(deadline=None, max_examples=60)
@given(STEPS, st.integers(1, 3000), st.sampled_from([2, 360]))
def test_roughly(step, length, intervals):
    expected = every_angle(step, length, intervals, bits=30)
    np.testing.assert_array_equal(COUNT(turns(step).roughly(), length, intervals), expected)


@settings(deadline=None, max_examples=25)
@given(STEPS, st.integers(ROUGH - 2, ROUGH + 200_000))
def test_long(step, length):
    expected = every_angle(step, length, 360)
    np.testing.assert_array_equal(COUNT(turns(step), length, 360), expected)
    if length > ROUGH:
        np.testing.assert_array_equal(COUNT(turns(step).roughly(), length, 360), expected)


@pytest.mark.parametrize("step", [1, 2**44 + 3, 2**64 // 149 + 12345, 2**63 - 1])
@pytest.mark.parametrize("length", [GUESSED, GUESSED + 1, 2**22 + 1])
def test_longer_than_one_guess(step, length):
    np.testing.assert_array_equal(COUNT(turns(step), length, 360), every_angle(step, length, 360))


@pytest.mark.parametrize("length", [ROUGH, ROUGH + 1, 2**20, 10_000_000, 2**31 - 1])
def test_counts_sum_to_the_length(length):
    counts = angle_histograms(exact_frequencies(10000.0, 64), length, 360)
    np.testing.assert_array_equal(np.asarray(counts, np.int64).sum(axis=1), length)
    assert int(counts.min()) >= 0


def test_agrees_with_float64_at_a_million():
    length = 2**20
    theta = 10000.0 ** -(np.arange(0, 16, 2) / 16)
    counts = np.asarray(angle_histograms(exact_frequencies(10000.0, 16), length, 360))
    for pair, frequency in enumerate(theta):
        angles = np.arange(length) * (frequency / (2 * np.pi)) % 1 * 360
        reference = np.bincount(np.minimum(angles.astype(int), 359), minlength=360)
        # Angles within 1e-6 of an interval of an edge may count on either side.
        near = np.abs(angles - np.round(angles)) < 1e-6
        assert np.abs(counts[pair] - reference).sum() <= 2 * near.sum()


@settings(deadline=None, max_examples=40)
@given(STEPS, st.integers(1, 2000), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5))
def test_below_any_edge(step, length, edges):
    below = jax.jit(count_below)(turns(step), length, turns(edges))
    step = step + (1 << 15) >> 16
    angles = [m * step % 2**48 for m in range(length)]
    assert below.tolist() == [sum(angle < -(-edge // 2**16) for angle in angles) for edge in edges]


def test_neither_a_new_length_compiles_nor_does_memory_grow():
    theta = exact_frequencies(10000.0, 128)
    analysis = angle_histograms.lower(theta, 2**24, 360).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 16 * 2**20
    angle_histograms(theta, 1000, 36)
    compiled = angle_histograms._cache_size()
    angle_histograms(theta, 10_000_000, 36)
    assert angle_histograms._cache_size() == compiled


def test_strict_dtype_promotion():
    with jax.numpy_dtype_promotion("strict"):
        assert int(angle_histograms(exact_frequencies(500.0, 8), jnp.int32(77), 12).sum()) == 4 * 77
