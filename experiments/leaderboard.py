"""The Open LLM leaderboard's tasks through lm_eval."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from experiments.measured import Subject, stages
from experiments.progress import bar
from rope_jax.errors import InputError
from rope_jax.evaluation.leaderboard import LEADERBOARD, harness_tasks, leaderboard_scores
from rope_jax.sharding import cache_sharding, row_sharding


@dataclasses.dataclass(frozen=True)
class Harness:
    """The leaderboard's tasks with their questions.

    Attributes:
        manager: lm_eval's TaskManager, which takes seconds to make.
        tasks: lm_eval's tasks by name.
        reasons: of columns that cannot be run.
    """

    manager: object
    tasks: Mapping
    reasons: Mapping[str, str]


def load_harness(config: ConfigDict) -> Harness:
    """Loads the leaderboard's tasks.

    Args:
        config: the run's config.

    Returns:
        The tasks, and of those that cannot be run the reason.

    Raises:
        InputError: if lm_eval is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("the package lm_eval is not installed: pip install 'rope-jax[eval]'")
    from lm_eval.tasks import TaskManager

    # It warns of every default it takes.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    fields = config.eval
    folder = Path(fields.leaderboard).expanduser() if fields.leaderboard else None
    manager, tasks, reasons = TaskManager(), {}, {}
    for column in LEADERBOARD:
        try:
            tasks |= manager.load([harness_tasks(folder, (column,))])["tasks"]
        except InputError as error:
            reasons[column.name] = str(error)
        except (OSError, ValueError) as error:  # what `datasets` raises without the hub
            reasons[column.name] = (
                f"its questions cannot be had from the Hugging Face hub ({' '.join(str(error).split())}): name a "
                "folder with them in config.eval.leaderboard"
            )
    return Harness(manager, tasks, reasons)


def measure_leaderboard(subject: Subject, harness: Harness, path: Path) -> dict[str, dict]:
    """Scores of the leaderboard's tasks.

    Args:
        subject: what is measured.
        harness: see `load_harness`.
        path: where finished tasks are kept.

    Returns:
        See `leaderboard_scores`, with the 95% `interval` of each score and the `seconds` of all.
    """
    import lm_eval

    from rope_jax.evaluation.harness import HarnessModel

    fields = subject.config.eval
    lm = HarnessModel(
        subject.params,
        subject.model,
        subject.rope,
        subject.tokenizer,
        batch_size=fields.batch,
        max_length=max(subject.lengths),
        chunk=subject.config.train.loss_chunk,
        batch_sharding=row_sharding(subject.mesh),
        cache_sharding=cache_sharding(subject.mesh),
        progress=bar("leaderboard"),
    )

    def measure(task) -> dict:
        found = lm_eval.simple_evaluate(
            lm, tasks=[task], task_manager=harness.manager, limit=fields.leaderboard_limit or None, log_samples=False
        )
        return {key: value for key, value in next(iter(found["results"].values())).items() if key != "alias"}

    of = {"config.eval.leaderboard": fields.leaderboard}
    records = stages(path, of, {name: partial(measure, task) for name, task in harness.tasks.items()})
    scores = leaderboard_scores(records)
    for score in scores.values():
        half = 1.96 * score["standard_error"]
        score["interval"] = [max(0.0, score["score"] - half), min(100.0, score["score"] + half)]
    return {"scores": scores, "seconds": sum(record["seconds"] for record in records.values())}
