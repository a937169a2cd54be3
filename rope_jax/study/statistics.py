"""Paired comparisons over seeds and documents, and rank correlations, each with a 95% interval."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.stats

from rope_jax.evaluation.intervals import CONFIDENCE, percentile_interval

RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Difference:
    """A method's mean difference from the reference.

    Attributes:
        mean: over seeds and documents.
        interval: 95%, of this method by itself.
        together: 95%, of all methods at once: with 95% probability none of their true differences is outside.
        seeds: mean difference of each seed.
    """

    mean: float
    interval: tuple[float, float]
    together: tuple[float, float]
    seeds: tuple[float, ...]


def paired_differences(
    values: Mapping[str, np.ndarray], reference: str, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Difference]:
    """Differences of methods from `reference` by a bootstrap over seeds and documents.

    Both are drawn by themselves, because every seed's model reads the same documents: the interval holds for effects of
    either, and is too wide for noise that belongs to neither (pigeonhole bootstrap, Owen, arXiv 0712.1111). Of n units
    n - 1 are drawn, so that the variance of a mean is right for few of them (Hesterberg, The American Statistician 69,
    2015, section 3.4); a single unit has no spread and is kept. The intervals that hold together are those of the
    largest studentised deviation over methods (max-T; Westfall and Young, 1993).

    Args:
        values: method to float `[seeds, documents]`, of the same seeds and documents.
        reference: one of the methods; it is left out of the result.
        resamples: resamples of the bootstrap.
        seed: seed of the resamples.
    """
    names = [name for name in values if name != reference]
    if not names:
        return {}
    base = np.asarray(values[reference], np.float64)
    differences = np.stack([np.asarray(values[name], np.float64) - base for name in names])
    rng = np.random.default_rng(seed)
    of_seeds, of_documents = (_draws(rng, resamples, units) for units in base.shape)
    drawn = np.einsum("rs,rd,msd->rm", of_seeds, of_documents, differences)
    means = differences.mean(axis=(1, 2))
    low, high = percentile_interval(drawn)
    # A method equal to the reference everywhere has no spread.
    errors = np.maximum(drawn.std(axis=0), 1e-12)
    width = np.quantile(np.abs((drawn - means) / errors).max(axis=1), CONFIDENCE) * errors
    return {
        name: Difference(
            mean=float(means[i]),
            interval=(float(low[i]), float(high[i])),
            together=(float(means[i] - width[i]), float(means[i] + width[i])),
            seeds=tuple(differences[i].mean(axis=1).tolist()),
        )
        for i, name in enumerate(names)
    }


@dataclasses.dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation, its 95% interval, and that of each seed."""

    value: float
    interval: tuple[float, float]
    seeds: tuple[float, ...]


def rank_correlation(
    predictor: np.ndarray, quality: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> RankCorrelation:
    """Spearman's rank correlation of a predictor with measured quality: the mean over seeds, bootstrapped over vectors.

    Args:
        predictor: float `[vectors]` or, of each seed's model, `[seeds, vectors]`.
        quality: float `[seeds, vectors]`.
    """
    quality = np.asarray(quality, np.float64)
    predictor = np.broadcast_to(np.asarray(predictor, np.float64), quality.shape)
    rng = np.random.default_rng(seed)
    vectors = quality.shape[1]
    found = _spearman(predictor, quality)
    columns = rng.integers(0, vectors, (resamples, vectors))
    drawn = np.mean([_spearman(p[columns], q[columns]) for p, q in zip(predictor, quality)], axis=0)
    low, high = percentile_interval(drawn)
    return RankCorrelation(float(found.mean()), (float(low), float(high)), tuple(found.tolist()))


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rank correlations along the last axis; 0 where one side is constant."""
    x, y = (ranks - ranks.mean(axis=-1, keepdims=True) for ranks in (scipy.stats.rankdata(v, axis=-1) for v in (x, y)))
    scale = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    return np.divide((x * y).sum(axis=-1), scale, out=np.zeros_like(scale), where=scale > 0)


def _draws(rng: np.random.Generator, resamples: int, units: int) -> np.ndarray:
    """Weights of units in each resample, which sum to 1: float64 `[resamples, units]`."""
    drawn = max(units - 1, 1)
    return (
        rng.multinomial(drawn, np.full(units, 1 / units), resamples) / drawn if units > 1 else np.ones((resamples, 1))
    )
