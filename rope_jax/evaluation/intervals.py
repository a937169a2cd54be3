"""Confidence intervals: Wilson's for shares of successes, the bootstrap for everything else."""

from functools import cache

import numpy as np

CONFIDENCE = 0.95


@cache
def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a share of successes (JASA 22, 1927), without continuity correction.

    Within [0, 1], of positive width also at 0 % and 100 %; (0, 1) without trials.
    """
    if trials == 0:
        return 0.0, 1.0
    # Here, because its import takes as long as that of JAX, and every command imports this file.
    import scipy.stats

    interval = scipy.stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_ratios(numerators, denominators, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """Resamples of `sum(numerators) / sum(denominators)`, units drawn with replacement: float64 `[resamples, ...]`.

    Both are floats `[N, ...]`, a row per unit, for instance the summed NLL of each document and its number of tokens.
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


def bootstrap_interval(numerators, denominators, seed: int = 0) -> tuple[float, float] | None:
    """The percentile interval of `sum(numerators) / sum(denominators)`, float `[N]`; None for fewer than two units."""
    if len(numerators) < 2:
        return None
    low, high = percentile_interval(bootstrap_ratios(numerators, denominators, seed=seed))
    return float(low), float(high)


def interval_of_mean(means, lows, highs) -> tuple[float, float]:
    """Interval of the mean of K independent estimates from their own intervals (Zou and Donner, Stat. Med. 27, 2008).

    With estimates m_i and intervals (l_i, u_i) its ends are `m - sqrt(sum (m_i - l_i)^2) / K` and
    `m + sqrt(sum (u_i - m_i)^2) / K`. It has a positive width also where every estimate is a share of 0 % or 100 %,
    unlike a bootstrap.
    """
    means, lows, highs = (np.asarray(values, np.float64) for values in (means, lows, highs))
    down, up = (np.sqrt(np.sum((means - ends) ** 2)) / means.size for ends in (lows, highs))
    return float(means.mean() - down), float(means.mean() + up)


def percentile_interval(resampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bootstrap's percentile interval over `[R, ...]` resamples: lower and upper ends, `[...]` each."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    return low, high
