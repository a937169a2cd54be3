"""Scores by length and depth: where in a prompt a model finds what it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rope_jax.evaluation.sample import Sample
from rope_jax.evaluation.scores import mean_score


def found_depth(sample: Sample) -> float | None:
    """The place of the only reference in the prompt, as a share of its characters; None for several."""
    if len(sample.references) != 1:
        return None
    place = sample.prompt.find(sample.references[0])
    return None if place < 0 else place / len(sample.prompt)


def depth_grids(
    samples: Sequence[Sample],
    scores: Mapping[str, float],
    depth: Callable[[Sample], float | None],
    bins: int = 10,
    seed: int = 0,
) -> dict[str, dict]:
    """A grid of mean scores in [0, 1], given by sample id, for each task whose samples have a depth in [0, 1].

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
