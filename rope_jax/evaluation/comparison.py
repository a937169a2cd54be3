"""Paired differences of methods from a reference, on the same documents or samples.

Documents differ by whole nats and methods by hundredths, so that the interval that tells methods apart is that of the
difference, not each method's own.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rope_jax.evaluation.intervals import bootstrap_interval, interval_of_mean
from rope_jax.evaluation.sample import Sample

LAST = 500  # Tokens at the end of a window, the hardest ones for a model that degrades.


@dataclasses.dataclass(frozen=True)
class Difference:
    """A method's mean less the reference's; None without a unit.

    `interval` holds its ends at 95% confidence, by bootstrap over `units`, documents or samples; None for a single one.
    """

    difference: float | None
    interval: tuple[float, float] | None
    units: int

    def to_json(self) -> dict:
        """The fields as results hold them."""
        return {**vars(self), "interval": self.interval and list(self.interval)}


def paired_difference(sums, reference, weights, seed: int = 0) -> Difference:
    """The difference of two means `sum(sums) / sum(weights)`, float `[N]` each, the units drawn together."""
    apart, weights = np.subtract(sums, reference, dtype=np.float64), np.asarray(weights, np.float64)
    used = weights > 0
    apart, weights = apart[used], weights[used]
    if not len(apart):
        return Difference(None, None, 0)
    interval = bootstrap_interval(apart, weights, seed)
    return Difference(float(apart.sum() / weights.sum()), interval, len(apart))


def regions(window: int, original: int) -> dict[str, tuple[int, int]]:
    """Positions that are compared, first and one past the last: within the original context, beyond, and far beyond."""
    found = {"short": (1, min(original, window))}
    found |= {"beyond": (original, window)} if window > original else {}
    found |= {"long": (3 * window // 4, window)}
    return found | ({"last": (window - LAST, window)} if window >= 4 * LAST else {})


def compare_perplexities(records: Mapping[str, Mapping], reference: Mapping, original: int, seed: int = 0) -> dict:
    """Differences in NLL, nats per token, of a method's records of perplexity from those of the reference.

    Returns:
        JSON-able: a difference for each window and convention, and under `by_position` for each bucket, with `start`
        and `end`; under `regions` for those of `regions`.
    """
    by_window = {
        name: paired_difference(ours[0], theirs[0], ours[1], seed)
        for name in records
        if name != "by_position"
        for ours, theirs in [np.transpose([record[name]["by_document"] for record in (records, reference)], (0, 2, 1))]
    }
    ours, theirs = (np.asarray(r["by_position"]["by_document"], np.float64) for r in (records, reference))
    windows = np.asarray(records["by_position"]["windows_by_document"])
    buckets = records["by_position"]["buckets"]

    def between(start: int, end: int) -> dict:
        within = [i for i, bucket in enumerate(buckets) if start <= bucket["start"] and bucket["end"] <= end]
        tokens = windows * sum(buckets[i]["end"] - buckets[i]["start"] for i in within)
        found = paired_difference(ours[:, within].sum(axis=1), theirs[:, within].sum(axis=1), tokens, seed)
        return {"start": start, "end": end, **found.to_json()}

    named = regions(records["by_position"]["window"], original)
    return {
        **{name: found.to_json() for name, found in by_window.items()},
        "by_position": [between(bucket["start"], bucket["end"]) for bucket in buckets],
        "regions": {name: between(*ends) for name, ends in named.items()},
    }


def compare_scores(
    samples: Iterable[tuple[Sample, str]], scores: Mapping[str, float], reference: Mapping[str, float], seed: int = 0
) -> dict[str, dict]:
    """Differences of mean scores in percent, by column, from the reference's; `scores` are by sample id.

    Samples come with their column. Every task has the same weight; its interval is over its samples.
    """
    cells: dict[str, dict[str, list[float]]] = {}
    for sample, column in samples:
        apart = 100 * (scores[sample.id] - reference[sample.id])
        cells.setdefault(column, {}).setdefault(sample.task, []).append(apart)
    return {column: _over_tasks(list(tasks.values()), seed).to_json() for column, tasks in cells.items()}


def _over_tasks(groups: Sequence[Sequence[float]], seed: int) -> Difference:
    found = [paired_difference(group, np.zeros(len(group)), np.ones(len(group)), seed) for group in groups]
    means = [task.difference for task in found if task.difference is not None]
    intervals = [task.interval for task in found if task.interval is not None]
    interval = interval_of_mean(means, *zip(*intervals)) if len(intervals) == len(found) else None
    return Difference(float(np.mean(means)), interval, sum(task.units for task in found))
