"""Mean scores with confidence intervals: the table of a benchmark, and its grids of length and depth."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from rope_jax.evaluation.intervals import bootstrap_ratios, interval_of_mean, percentile_interval, wilson
from rope_jax.evaluation.sample import Sample

AVERAGE = "average"
AVERAGE_OF_RUN = "average of those run"


@dataclasses.dataclass(frozen=True)
class MeanScore:
    """A mean of scores, in percent.

    Attributes:
        mean: 0 .. 100; None if there was nothing to score.
        interval: its 95% confidence interval over samples; None where one cannot be told from one sample.
        samples: number of scores.
    """

    mean: float | None
    interval: tuple[float, float] | None
    samples: int


def mean_score(scores: Sequence[float], seed: int = 0) -> MeanScore:
    """Mean of scores between 0 and 1, in percent, and its interval.

    Scores that are all 0 or 1 get Wilson's interval, which is wide where few samples all agree; other ones the
    percentile interval of the bootstrap over samples.
    """
    values = np.asarray(scores, np.float64)
    if values.size == 0:
        return MeanScore(None, None, 0)
    mean = 100 * float(values.mean())
    if np.isin(values, (0.0, 1.0)).all():
        low, high = wilson(int(values.sum()), values.size)
    elif values.size == 1:
        return MeanScore(mean, None, 1)
    else:
        low, high = percentile_interval(bootstrap_ratios(values, np.ones_like(values), seed=seed))
    return MeanScore(mean, (100 * float(low), 100 * float(high)), values.size)


def mean_of_means(groups: Sequence[Sequence[float]], seed: int = 0) -> MeanScore:
    """Mean of the groups' means, each group with the same weight whatever its size, in percent.

    Its interval follows from those of the groups, which are held fixed. Both are None if there is no group or an empty
    one: a mean over fewer groups would be another quantity.
    """
    cells = [mean_score(group, seed) for group in groups]
    if not all(cell.samples for cell in cells):
        return MeanScore(None, None, sum(cell.samples for cell in cells))
    return _mean_of_cells(cells)


def score_table(
    samples: Iterable[Sample], scores: Mapping[str, float], tasks: Sequence[str] | None = None, seed: int = 0
) -> dict[str, dict[str, MeanScore]]:
    """A benchmark's table, `{task: {length: mean}}` with ascending lengths, from scores in [0, 1] by sample id.

    Rows are `tasks`, by default those of the samples. A task that was not run has its row, so that no average passes
    over it in silence. More than one task have a row `average`: at each length the mean of the tasks' means, None where
    a task has no sample.
    """
    cells: dict[str, dict[int, list[float]]] = {task: {} for task in tasks or ()}
    for sample in samples:
        cells.setdefault(sample.task, {}).setdefault(sample.length, []).append(scores[sample.id])
    lengths = sorted({length for row in cells.values() for length in row})
    table = {
        task: {str(length): mean_score(row.get(length, []), seed) for length in lengths} for task, row in cells.items()
    }
    if len(cells) > 1:
        table[AVERAGE] = {
            str(length): mean_of_means([row.get(length, []) for row in cells.values()], seed) for length in lengths
        }
    return table


def average_of_run(table: Mapping[str, Mapping[str, MeanScore]]) -> dict[str, dict[str, MeanScore]]:
    """The table, with a last row `average of those run` if an average is None because a task is missing.

    At each column it is the mean of the tasks' means that there are: another quantity than the benchmark's average.
    """
    rows = {task: dict(row) for task, row in table.items()}
    if all(cell.mean is not None for cell in rows.get(AVERAGE, {}).values()):
        return rows
    partial = {}
    for column in rows[AVERAGE]:
        cells = [row[column] for task, row in rows.items() if task != AVERAGE and column in row]
        partial[column] = _mean_of_cells([cell for cell in cells if cell.samples])
    return {**rows, AVERAGE_OF_RUN: partial}


def depth_grids(
    samples: Sequence[Sample],
    scores: Mapping[str, float],
    depth: Callable[[Sample], float | None],
    bins: int = 10,
    seed: int = 0,
) -> dict[str, dict]:
    """A grid of mean scores, given by sample id, for each task whose samples have a depth in [0, 1].

    Returns:
        `{task: {"lengths": [...], "depths": [middle of each stratum], "mean": [lengths][depths], "interval": ...,
        "samples": ...}}`, means and 95% intervals in percent, None where there is no sample.
    """
    cells: dict[str, dict[int, list[list[float]]]] = {}
    for sample in samples:
        place = depth(sample)
        if place is None:
            continue
        row = cells.setdefault(sample.task, {}).setdefault(sample.length, [[] for _ in range(bins)])
        row[min(int(place * bins), bins - 1)].append(scores[sample.id])
    grids = {}
    for task, by_length in cells.items():
        rows = [[mean_score(cell, seed) for cell in by_length[length]] for length in sorted(by_length)]
        grids[task] = {
            "lengths": sorted(by_length),
            "depths": [float(middle) for middle in (np.arange(bins) + 0.5) / bins],
            **{
                name: [[getattr(cell, name) for cell in row] for row in rows]
                for name in ("mean", "interval", "samples")
            },
        }
    return grids


def _mean_of_cells(cells: Sequence[MeanScore]) -> MeanScore:
    """Mean of means, each with the same weight."""
    means = [cell.mean for cell in cells if cell.mean is not None]
    intervals = [cell.interval for cell in cells if cell.interval is not None]
    samples = sum(cell.samples for cell in cells)
    if not means:
        return MeanScore(None, None, samples)
    interval = interval_of_mean(means, *zip(*intervals)) if len(intervals) == len(means) else None
    return MeanScore(float(np.mean(means)), interval, samples)
