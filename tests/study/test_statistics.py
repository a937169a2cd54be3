"""Intervals and correlations against closed forms and SciPy."""

import numpy as np
import pytest
import scipy.stats

from rope_jax.study.statistics import paired_differences, rank_correlation


def test_interval_of_independent_documents_is_that_of_their_mean():
    values = np.random.default_rng(0).normal(1.0, 2.0, (1, 400))
    found = paired_differences({"yarn": np.zeros((1, 400)), "pi": values}, "yarn", resamples=4000)["pi"]
    assert found.mean == pytest.approx(values.mean())
    error = values.std(ddof=1) / 20
    # The bootstrap's ends have an error of their own, about 3% of the width for 4000 resamples.
    assert found.interval == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error
    )
    # One method: together is alone, up to the shape of the distribution.
    assert found.together == pytest.approx(found.interval, abs=0.15 * error)


def test_few_seeds_have_the_spread_of_their_mean():
    """Seeds that differ and documents that do not: the variance of a mean of three, not two thirds of it."""
    seeds = np.array([0.0, 1.0, 5.0])
    values = {"yarn": np.zeros((3, 50)), "pi": np.repeat(seeds[:, None], 50, axis=1)}
    found = paired_differences(values, "yarn", resamples=20000)["pi"]
    high = found.together[1]
    # The largest deviation is studentised by the bootstrap's error, here that of draws of two.
    error = seeds.std(ddof=1) / np.sqrt(3)
    draws = np.array([(a + b) / 2 for a in seeds for b in seeds])
    assert draws.std() == pytest.approx(error)
    assert high - found.mean == pytest.approx(np.quantile(abs(draws - 2), 0.95, method="higher"), abs=0.02)
    assert found.seeds == (0.0, 1.0, 5.0)


def test_many_methods_without_an_effect_rarely_exclude_zero():
    rng = np.random.default_rng(1)
    wrong, alone = 0, 0
    for trial in range(100):
        values = {f"m{i}": np.tile(rng.normal(0, 1, 20), (3, 1)) for i in range(12)} | {"yarn": np.zeros((3, 20))}
        found = paired_differences(values, "yarn", resamples=300, seed=trial).values()
        wrong += any(d.together[0] > 0 or d.together[1] < 0 for d in found)
        alone += any(d.interval[0] > 0 or d.interval[1] < 0 for d in found)
    # Expected of 100 trials: 5, and 46 if each of twelve independent methods errs in one of twenty.
    assert wrong <= 12 and alone >= 30


def test_the_reference_and_what_equals_it():
    values = np.random.default_rng(2).normal(0, 1, (2, 5))
    found = paired_differences({"yarn": values, "same": values}, "yarn", resamples=10)
    assert list(found) == ["same"]
    assert found["same"].mean == 0 and found["same"].interval == (0, 0)
    assert paired_differences({"yarn": values}, "yarn") == {}


def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(3)
    predictor = rng.normal(size=60).round(1)
    quality = np.stack([predictor + rng.normal(size=60), -predictor + rng.normal(size=60)])
    found = rank_correlation(predictor, quality, resamples=200)
    assert found.seeds == pytest.approx([scipy.stats.spearmanr(predictor, q).statistic for q in quality])
    assert found.value == pytest.approx(np.mean(found.seeds))
    assert found.interval[0] < found.value < found.interval[1]
    assert rank_correlation(np.zeros(60), quality, resamples=5).value == 0
