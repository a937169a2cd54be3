"""Perplexity as a function of position in the window."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from rope_jax.errors import InputError
from rope_jax.evaluation.intervals import bootstrap_ratios, percentile_interval
from rope_jax.evaluation.perplexity.sliding import TokenNll, Window, score_windows


@dataclasses.dataclass(frozen=True)
class PositionBucket:
    """Perplexity of the tokens at positions `start .. end - 1` of their window.

    A token's position is its index in the model's input, hence the number of tokens it is predicted from. `nll` is
    their mean in nats, `perplexity` its exponential; `standard_error` of `nll` and the 95% `interval` of `perplexity`
    are by bootstrap over documents, None for a single one. Windows of one document are not independent.
    """

    start: int
    end: int
    tokens: int
    nll: float
    perplexity: float
    standard_error: float | None
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class PositionPerplexity:
    """Perplexity as a function of position, every bucket over the same windows.

    `window` is in tokens, BOS included; `documents` had at least one full window; the buckets tile 1 .. window - 1.
    `by_document` holds the summed NLL of each document in each bucket, over `windows_by_document`.
    """

    window: int
    windows: int
    documents: int
    buckets: tuple[PositionBucket, ...]
    windows_by_document: tuple[int, ...]
    by_document: tuple[tuple[float, ...], ...]


def position_edges(window: int, context: int | None = None) -> tuple[int, ...]:
    """Edges of log-spaced buckets of position, ascending from 1 to `window`: powers of two.

    Around the context that the model was pre-trained on there are more: buckets an eighth of it wide from half to twice
    it, and half of it wide beyond.
    """
    edges = {2**k for k in range(window.bit_length())}
    if context is not None:
        edges |= {context * eighths // 8 for eighths in range(4, 17)}
        edges |= set(range(2 * context, window, max(context // 2, 1)))
    return (*sorted(edge for edge in edges if 1 <= edge < window), window)


def perplexity_by_position(
    token_nll: TokenNll,
    documents: Sequence[np.ndarray],
    window: int,
    *,
    bos_id: int | None,
    edges: Sequence[int] | None = None,
    batch_size: int = 1,
    seed: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> PositionPerplexity:
    """Mean NLL as a function of position, which shows where a model's window ends.

    Documents, int `[n]` without special tokens, are cut into windows that do not overlap, each with a BOS in front if
    there is one, and every token is scored at its position. Only full windows count, so that all positions see the same
    texts. There is a bucket for each pair of neighbouring `edges`, positions that ascend from 1 to `window`; default
    powers of two. `seed` is the bootstrap's.
    """
    if window < 2:
        raise InputError(f"`window` is {window}: it must be at least 2")
    bounds = np.asarray(position_edges(window) if edges is None else edges)
    if bounds[0] != 1 or bounds[-1] != window or np.any(np.diff(bounds) < 1):
        raise InputError(f"`edges` is {bounds.tolist()}: use positions that ascend from 1 to the window, {window}")
    held = window - (bos_id is not None)
    windows = [
        (index, Window(start, start + held, start + held - window + 1))
        for index, document in enumerate(documents)
        for start in range(0, len(document) - held + 1, held)
    ]
    if not windows:
        longest = max((len(document) for document in documents), default=0)
        raise InputError(
            f"`window` is {window}, and no document fills a window: the longest has {longest} tokens of the {held} "
            "that it takes"
        )

    # Column t holds the NLL of the token at position t + 1; the last column holds none.
    placed = [(documents[index], w) for index, w in windows]
    sums = np.concatenate(
        [
            np.add.reduceat(nll[:, :-1], bounds[:-1] - 1, axis=1)
            for nll in score_windows(token_nll, placed, bos_id, batch_size, progress)
        ]
    )
    owners, counts = np.unique([index for index, _ in windows], return_counts=True)
    sums = np.add.reduceat(sums, np.cumsum(counts) - counts, axis=0)
    widths = counts[:, None] * np.diff(bounds)
    means = sums.sum(axis=0) / widths.sum(axis=0)
    several = len(owners) > 1
    errors = low = high = np.zeros_like(means)
    if several:
        resampled = bootstrap_ratios(sums, widths, seed=seed)
        errors = resampled.std(axis=0, ddof=1)
        low, high = np.exp(percentile_interval(resampled))
    buckets = tuple(
        PositionBucket(
            start=int(bounds[i]),
            end=int(bounds[i + 1]),
            tokens=int(widths[:, i].sum()),
            nll=float(means[i]),
            perplexity=float(np.exp(means[i])),
            standard_error=float(errors[i]) if several else None,
            interval=(float(low[i]), float(high[i])) if several else None,
        )
        for i in range(len(means))
    )
    by_document = tuple(map(tuple, sums.tolist()))
    return PositionPerplexity(window, len(windows), len(owners), buckets, tuple(counts.tolist()), by_document)
