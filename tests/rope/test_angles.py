"""The angle histogram against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.rope.angles import angle_counts, angle_histograms
from rope_jax.rope.embedding import frequencies

FREQUENCIES = st.floats(1e-6, 1.0).map(np.float32)
INTERVALS = st.sampled_from([2, 90, 360])


def float64_histogram(frequency, length, intervals):
    """Reference counts, and how many angles lie so near an edge that float32 may put them across it."""
    angles = np.arange(length) * np.float64(frequency)
    # The product is off by half a unit in its last place and each whole turn by that of float32's 2 pi;
    # the scaling to intervals adds a unit in the last place of an angle.
    turns = angles[-1] / (2 * np.pi)
    slack = angles[-1] * 2.0**-24 + turns * abs(np.float64(np.float32(2 * np.pi)) - 2 * np.pi) + 2e-6
    width = 2 * np.pi / intervals
    angles = np.mod(angles, 2 * np.pi)
    counts = np.bincount(np.minimum((angles / width).astype(int), intervals - 1), minlength=intervals)
    near_edge = np.abs(angles / width - np.round(angles / width)) * width < slack
    return counts, int(near_edge.sum())


@settings(deadline=None, max_examples=60)
@given(FREQUENCIES, st.integers(1, 5000), INTERVALS)
def test_agrees_with_float64_up_to_edges(frequency, length, intervals):
    counts = np.asarray(angle_counts(frequency, length, intervals))
    reference, near_edge = float64_histogram(frequency, length, intervals)
    assert counts.shape == (intervals,) and counts.dtype == np.int32
    assert counts.sum() == length
    assert np.abs(counts - reference).sum() <= 2 * near_edge


@pytest.mark.parametrize("length", [1, 1023, 1024, 1025, 4096, 16384])
def test_every_pair_sums_to_the_length(length):
    histograms = angle_histograms(frequencies(10000.0, 128), length, 360)
    assert histograms.shape == (64, 360)
    np.testing.assert_array_equal(histograms.sum(axis=1), length)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4096), st.integers(1, 4096), INTERVALS)
def test_counts_grow_with_the_length(first, second, intervals):
    short, long = sorted((first, second))
    theta = frequencies(10000.0, 16)
    grown = angle_histograms(theta, long, intervals) - angle_histograms(theta, short, intervals)
    assert int(grown.min()) >= 0


def test_pairs_are_independent():
    theta = frequencies(10000.0, 32)
    alone = np.stack([angle_counts(frequency, 3000, 180) for frequency in theta])
    np.testing.assert_array_equal(angle_histograms(theta, 3000, 180), alone)


def test_known_quarters():
    # A quarter turn and a hair per position visits the quarters in order: 0 1 2 3 0 1 2 3 0 1.
    frequency = np.float32(np.pi / 2 + 1e-3)
    np.testing.assert_array_equal(angle_counts(frequency, 10, 4), [3, 3, 2, 2])
    np.testing.assert_array_equal(angle_counts(np.float32(0), 10, 4), [10, 0, 0, 0])


def test_a_new_length_does_not_recompile():
    theta = frequencies(10000.0, 64)
    angle_histograms(theta, 100, 36)
    compiled = angle_histograms._cache_size()
    angle_histograms(theta, 200_000, 36)
    angle_histograms(theta, jnp.int32(7), 36)
    assert angle_histograms._cache_size() <= compiled + 1  # a Python int and an int32 array are two signatures


def test_memory_does_not_grow_with_the_length():
    theta = frequencies(10000.0, 128)
    analysis = angle_histograms.lower(theta, 2**24, 360).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 16 * 2**20


def test_strict_dtype_promotion():
    with jax.numpy_dtype_promotion("strict"):
        assert int(angle_histograms(frequencies(500.0, 8), 77, 12).sum()) == 4 * 77
