"""Confidence intervals: Wilson's for shares of successes, the bootstrap for everything else."""

from __future__ import annotations

from functools import cache

import numpy as np
import scipy.stats


@cache
def wilson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a binomial share (JASA 22, 1927), without continuity correction.

    Args:
        successes: 0 .. trials.
        trials: number of independent trials; without any the interval is (0, 1).
        confidence: coverage, between 0 and 1.

    Returns:
        Lower and upper end, within [0, 1]; of positive width also at 0 % and 100 %.
    """
    if trials == 0:
        return 0.0, 1.0
    interval = scipy.stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_ratios(numerators, denominators, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """Resamples of `sum(numerators) / sum(denominators)`, units drawn with replacement.

    Args:
        numerators: float `[N, ...]`, one row per unit, for instance the summed NLL of a document.
        denominators: float, same shape, for instance its number of tokens.
        resamples: R.
        seed: seed of the draws.

    Returns:
        float64 `[R, ...]`.
    """
    numerators = np.asarray(numerators, np.float64)
    denominators = np.asarray(denominators, np.float64)
    units = len(numerators)
    rng = np.random.default_rng(seed)
    ratios = []
    for _ in range(resamples):
        # One resample at a time: R x N draws would be large for many windows.
        counts = np.bincount(rng.integers(0, units, units), minlength=units)
        ratios.append(np.tensordot(counts, numerators, 1) / np.tensordot(counts, denominators, 1))
    return np.stack(ratios)


def interval_of_mean(means, lows, highs) -> tuple[float, float]:
    """Interval of the mean of independent estimates from their own intervals (Zou and Donner, Stat. Med. 27, 2008).

    With estimates m_i and intervals (l_i, u_i) it is `m - sqrt(sum (m_i - l_i)^2) / K` to
    `m + sqrt(sum (u_i - m_i)^2) / K`. Unlike a bootstrap it is of positive width also where every estimate is a
    share of 0 % or 100 %.

    Args:
        means: float `[K]`, the estimates.
        lows: float `[K]`, lower ends of their intervals, all of the same coverage.
        highs: float `[K]`, upper ends.

    Returns:
        Lower and upper end, of about that coverage.
    """
    means, lows, highs = (np.asarray(values, np.float64) for values in (means, lows, highs))
    down, up = (np.sqrt(np.sum((means - ends) ** 2)) / means.size for ends in (lows, highs))
    return float(means.mean() - down), float(means.mean() + up)


def percentile_interval(resampled: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The bootstrap's percentile interval.

    Args:
        resampled: float `[R, ...]`.
        confidence: coverage, between 0 and 1.

    Returns:
        Lower and upper ends, `[...]` each.
    """
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    return low, high
