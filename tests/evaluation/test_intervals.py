"""Intervals against a published table and scipy."""

import numpy as np
import pytest
import scipy.stats

from rope_jax.evaluation.intervals import bootstrap_ratios, percentile_interval, wilson


def test_wilson_equals_newcombes_published_examples():
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    for (successes, trials), want in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        np.testing.assert_allclose(wilson(successes, trials), want, atol=5e-5)


def test_wilson_without_trials_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_bootstrap_of_means_has_the_spread_of_the_standard_error():
    values = np.random.default_rng(0).normal(3.0, 2.0, (400, 2))
    resampled = bootstrap_ratios(values, np.ones_like(values), resamples=2000, seed=1)
    standard_error = values.std(axis=0, ddof=1) / 20
    np.testing.assert_allclose(resampled.std(axis=0), standard_error, rtol=0.08)
    low, high = percentile_interval(resampled)
    np.testing.assert_allclose((high - low) / 2, 1.96 * standard_error, rtol=0.1)


def test_bootstrap_agrees_with_scipys():
    rng = np.random.default_rng(0)
    numerators, denominators = rng.gamma(4.0, size=30), rng.gamma(9.0, size=30)
    want = scipy.stats.bootstrap(
        (numerators, denominators),
        lambda n, d, axis: n.sum(axis) / d.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    got = percentile_interval(bootstrap_ratios(numerators, denominators, resamples=4000, seed=3))
    np.testing.assert_allclose(got, want, rtol=0.02)


def test_bootstrap_is_seeded_and_a_ratio_of_sums():
    numerators, denominators = np.array([1.0, 6.0]), np.array([1.0, 3.0])
    resampled = bootstrap_ratios(numerators, denominators, resamples=50, seed=5)
    assert {round(float(x), 6) for x in resampled} == {1.0, 1.75, 2.0}
    np.testing.assert_array_equal(resampled, bootstrap_ratios(numerators, denominators, 50, 5))
    assert not np.array_equal(resampled, bootstrap_ratios(numerators, denominators, 50, 6))


@pytest.mark.parametrize("units", [1, 7])
def test_bootstrap_of_equal_units_has_no_spread(units):
    low, high = percentile_interval(bootstrap_ratios(np.full(units, 4.0), np.full(units, 2.0)))
    assert low == high == 2.0
