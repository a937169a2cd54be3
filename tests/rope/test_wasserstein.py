"""The circular Wasserstein distance against an assignment solved by brute force."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from rope_jax.rope.embedding import frequencies
from rope_jax.rope.exact.turns import Turns
from rope_jax.rope.wasserstein import circular_wasserstein, wasserstein

DISTANCE = jax.jit(circular_wasserstein)


def assignment(first, second):
    """Repeats both sets to one size and assigns one to the other at least cost."""
    n = np.lcm(len(first), len(second))
    first, second = np.repeat(first, n // len(first)), np.repeat(second, n // len(second))
    apart = np.abs(first[:, None] - second)
    apart = np.minimum(apart, 1 - apart)
    return 2 * np.pi * apart[linear_sum_assignment(apart)].mean()


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([1, 3, 8]), st.sampled_from([1, 6, 7]), st.integers(0, 2**31))
def test_is_the_least_cost_of_an_assignment(n, m, seed):
    rng = np.random.default_rng(seed)
    first, second = rng.random(n).astype(np.float32), rng.random(m).astype(np.float32)
    assert float(DISTANCE(first, second)) == pytest.approx(assignment(first, second), abs=2e-6)


@settings(deadline=None, max_examples=20)
@given(st.floats(0, 1, width=32), st.integers(0, 2**31))
def test_turning_both_changes_nothing(shift, seed):
    rng = np.random.default_rng(seed)
    first, second = rng.random(7), rng.random(5)
    here, there = (
        float(DISTANCE(*(np.mod(x + by, 1).astype(np.float32) for x in (first, second)))) for by in (0, shift)
    )
    assert here == pytest.approx(there, abs=1e-5)


@pytest.mark.parametrize("kind", [np.asarray, Turns.create])
def test_extension(kind):
    theta = kind(frequencies(10000.0, 16))
    np.testing.assert_allclose(wasserstein(theta, np.ones(8, np.float32), 200, 200), 0, atol=1e-6)
    # A pair that sweeps less than half the circle and then twice as much moves by half of what it swept.
    slow = 10000.0 ** -(14 / 16) * 200
    assert float(wasserstein(theta, np.ones(8, np.float32), 200, 400)[-1]) == pytest.approx(slow / 2, rel=1e-2)
    assert float(wasserstein(theta, np.full(8, 2, np.float32), 200, 400)[-1]) < 1e-3
