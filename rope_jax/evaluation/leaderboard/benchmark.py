"""The benchmark of the Open LLM leaderboard's tasks, through lm_eval."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from rope_jax.errors import InputError
from rope_jax.evaluation.benchmark import Measurement, Setting, Subject
from rope_jax.evaluation.leaderboard.tasks import LEADERBOARD, harness_tasks, leaderboard_scores


@dataclasses.dataclass(frozen=True)
class Leaderboard(Measurement):
    """The first Open LLM leaderboard's tasks that the paper reports.

    Attributes:
        folder: folder of questions; empty: the Hugging Face hub.
        limit: questions of each task; 0: all.
    """

    folder: str = ""
    limit: int = 0

    def check(self, setting: Setting) -> dict[str, InputError]:
        if importlib.util.find_spec("lm_eval") is None:
            raise InputError("the package lm_eval is not installed: pip install 'rope-jax[eval]'")
        _, tasks, missing = self._loaded
        if not tasks:
            reasons = "; ".join(f"{column}: {error}" for column, error in missing.items())
            raise InputError(f"no task of the leaderboard can be run: {reasons}", field="folder")
        return missing

    def of(self, setting: Setting) -> dict[str, str]:
        return {"folder": self.folder}

    def stages(self, subject: Subject, shared: Mapping[str, dict]) -> dict[str, Callable[[], dict]]:
        """A stage for each of lm_eval's tasks."""
        import lm_eval

        from rope_jax.evaluation.leaderboard.harness import HarnessModel

        manager, tasks, _ = self._loaded
        model = HarnessModel(subject)

        # Its decorator hides its parameters from type checkers.
        evaluate: Any = lm_eval.simple_evaluate

        def measure(task) -> dict:
            found = evaluate(model, tasks=[task], task_manager=manager, limit=self.limit or None, log_samples=False)
            return {key: value for key, value in next(iter(found["results"].values())).items() if key != "alias"}

        return {name: partial(measure, task) for name, task in tasks.items()}

    def result(self, records: Mapping[str, dict]) -> dict:
        """`scores` by column, each with its 95% `interval`, and the `seconds` of all."""
        scores = leaderboard_scores(records)
        for score in scores.values():
            half = 1.96 * score["standard_error"]
            score["interval"] = [max(0.0, score["score"] - half), min(100.0, score["score"] + half)]
        return {"scores": scores, "seconds": sum(record["seconds"] for record in records.values())}

    @cached_property
    def _loaded(self) -> tuple[Any, dict[str, Any], dict[str, InputError]]:
        """lm_eval's TaskManager, its tasks by name, and why columns cannot be run."""
        from lm_eval.tasks import TaskManager

        # It warns of every default it takes.
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        folder = Path(self.folder).expanduser() if self.folder else None
        manager, tasks, missing = TaskManager(), {}, {}
        for column in LEADERBOARD:
            try:
                tasks |= manager.load([harness_tasks(folder, (column,))])["tasks"]
            except InputError as error:
                missing[column.name] = error
            except (OSError, ValueError) as error:  # what `datasets` raises without the hub
                missing[column.name] = InputError(
                    f"the Hugging Face hub does not give its questions ({' '.join(str(error).split())}): name a folder "
                    "with them in `folder`",
                    field="folder",
                )
        return manager, tasks, missing
