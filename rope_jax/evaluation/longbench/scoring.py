"""Scores of LongBench-E: of a prediction, of a set by bucket, of a folder of prediction files."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rope_jax.errors import InputError
from rope_jax.evaluation.longbench.rows import check_row
from rope_jax.evaluation.longbench.sets import BUCKETS, SETS, bucket
from rope_jax.evaluation.scores import AVERAGE, MeanScore, mean_of_means, mean_score
from rope_jax.files import read_json_lines, write_json


class Scored(NamedTuple):
    """A prediction's score in [0, 1], and the words of its row, which decide the bucket."""

    words: int
    score: float


def score_prediction(name: str, prediction: str, answers: Sequence[str], classes: Sequence[str] | None) -> float:
    """Best score in [0, 1] of a prediction among the answers; of the sets only trec has classes."""
    kind = SETS[name]
    if kind.first_line:
        prediction = prediction.lstrip("\n").split("\n")[0]
    return max((kind.metric(prediction, answer, list(classes or [])) for answer in answers), default=0.0)


def bucket_scores(scored: Iterable[Scored]) -> dict[str, float]:
    """Percent of each bucket of a set as the benchmark prints it, rounded to two digits; NaN for an empty one."""
    groups = _by_bucket(scored)
    return {name: round(100 * float(np.mean(group)), 2) if group else math.nan for name, group in groups.items()}


def bucket_intervals(scored: Mapping[str, Iterable[Scored]], seed: int = 0) -> dict[str, dict[str, MeanScore]]:
    """The benchmark's table with confidence intervals, and the paper's averages, from the scores of each set.

    Returns:
        `{set: {bucket: mean}}`, each row ending with `average`, the mean of its buckets, and a last row `average`: the
        means over the sets, of which the last is the mean over sets, then over buckets. An average over something empty
        is None.
    """
    groups = {name: _by_bucket(rows) for name, rows in scored.items()}
    table = {}
    for name, row in groups.items():
        table[name] = {column: mean_score(group, seed) for column, group in row.items()}
        table[name][AVERAGE] = mean_of_means(list(row.values()), seed)
    columns = {column: [row[column] for row in groups.values()] for column in BUCKETS}
    table[AVERAGE] = {column: mean_of_means(cells, seed) for column, cells in columns.items()}
    table[AVERAGE][AVERAGE] = mean_of_means([group for cells in columns.values() for group in cells], seed)
    return table


def read_scored(folder: Path, progress: Callable[[Iterable], Iterable] = iter) -> dict[str, list[Scored]]:
    """Scores by set, in the order of the sets, of a folder of `SET.jsonl` or `SET.jsonl.gz` files; others are ignored.

    Lines are objects as the benchmark's own code writes them: `pred`, `answers`, `all_classes` (may be missing or null)
    and `length`. InputError, before anything is scored, names the folder, file or line that is wrong.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is not a folder; name the one that holds the prediction files (qasper.jsonl, ...)")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        stem = path.name.removesuffix(".gz")
        if not stem.endswith(".jsonl") or not path.is_file():
            continue
        name = stem.removesuffix(".jsonl")
        if name not in SETS:
            raise InputError(
                f"{path} is not named after a set of LongBench-E ({', '.join(SETS)}): rename it or move it away"
            )
        if name in files:
            raise InputError(f"{files[name]} and {path} are both predictions for {name}: remove one")
        files[name] = path
    if not files:
        raise InputError(f"{folder} has no prediction file; they are named after their set, such as qasper.jsonl")
    rows = [(name, row) for name in SETS if name in files for row in _read_predictions(files[name])]
    scored: dict[str, list[Scored]] = {name: [] for name in SETS if name in files}
    for name, row in progress(rows):
        score = score_prediction(name, row["pred"], row["answers"], row.get("all_classes"))
        scored[name].append(Scored(row["length"], score))
    return scored


def write_scores(
    folder: Path, output: Path, progress: Callable[[Iterable], Iterable] = iter
) -> dict[str, dict[str, float]]:
    """Scores a folder of prediction files in the benchmark's own form, and writes the results.

    In `output`, created if missing, `results.json` becomes `{"longbench_e": scores}`, null standing for NaN, which JSON
    does not have, and `longbench_e.json` the table with intervals, the averages and the sets without a file. Gives
    `{set: {"0-4k": percent, "4-8k": percent, "8k+": percent}}`, rounded to two digits; NaN for an empty bucket.
    """
    scored = read_scored(folder, progress)
    scores = {name: bucket_scores(rows) for name, rows in scored.items()}
    table = {
        name: {column: dataclasses.asdict(cell) for column, cell in row.items()}
        for name, row in bucket_intervals(scored).items()
    }
    missing = [name for name in SETS if name not in scored]
    plain = {
        name: {column: None if math.isnan(score) else score for column, score in row.items()}
        for name, row in scores.items()
    }
    try:
        write_json(Path(output) / "longbench_e.json", {"table": table, "not_scored": missing})
        write_json(Path(output) / "results.json", {"longbench_e": plain})
    except OSError as error:
        raise InputError(f"cannot write to {output} ({error}): choose another folder") from error
    return scores


def _by_bucket(scored: Iterable[Scored]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {name: [] for name in BUCKETS}
    for row in scored:
        groups[bucket(row.words)].append(row.score)
    return groups


def _read_predictions(path: Path) -> Iterator[dict[str, Any]]:
    for where, row in read_json_lines(path):
        if not isinstance(row.get("pred"), str):
            raise InputError(f'{where} has no "pred": it must be the predicted text')
        check_row(row, where)
        yield row
