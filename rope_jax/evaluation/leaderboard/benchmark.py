"""The four tasks of the first Open LLM leaderboard that the paper reports: lm_eval's own definitions, from the hub or
with the questions of a local folder."""

import csv
import dataclasses
import importlib.util
import io
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from rope_jax.errors import InputError
from rope_jax.evaluation.benchmark import Measurement, Setting, Subject
from rope_jax.evaluation.identity import digest
from rope_jax.files import read_json, read_json_lines, read_text

ARC_URL = "https://huggingface.co/datasets/allenai/ai2_arc"


@dataclasses.dataclass(frozen=True)
class LeaderboardTask:
    """A column of the leaderboard, by lm_eval's name of its task (of its tasks' common beginning for MMLU).

    `shots` are the worked examples in front of each question, `metric` is lm_eval's name of what is reported.
    """

    name: str
    shots: int
    metric: str


# HellaSwag as the paper has it; the board itself used 10 shots.
LEADERBOARD = (
    LeaderboardTask("arc_challenge", 25, "acc_norm"),
    LeaderboardTask("hellaswag", 0, "acc_norm"),
    LeaderboardTask("mmlu", 5, "acc"),
    LeaderboardTask("truthfulqa_mc2", 0, "acc"),
)


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
        folder = Path(self.folder).expanduser()
        paths = sorted(path for path in folder.rglob("*") if path.is_file()) if self.folder else ()
        questions = [part for path in paths for part in (str(path.relative_to(folder)), path.read_bytes())]
        return {"questions": digest(*questions), "protocol": digest(self.limit, max(setting.lengths))}

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


def harness_tasks(
    folder: Path | None = None, tasks: Sequence[LeaderboardTask] = LEADERBOARD, subjects: Sequence[str] = ()
) -> dict:
    """A group of lm_eval's own tasks: `lm_eval.simple_evaluate(model, tasks=[harness_tasks()])`.

    The folder holds the files of the questions, None takes them from the hub; empty `subjects` are all of MMLU's. Under
    `task` stands a dictionary for each task, and for each subject of MMLU: its name, shots, and with a folder what
    gives its questions. InputError names the file that is missing or wrong, where it comes from and how to get it.
    """
    found = []
    for task in tasks:
        names = [task.name]
        if task.name == "mmlu":
            names = [f"mmlu_{subject}" for subject in subjects or _subjects(folder)]
        for name in names:
            entry = {"task": name, "num_fewshot": task.shots}
            if folder is not None:
                # Now, so that a missing file is named before anything runs.
                splits = read_questions(folder, name, task.shots)
                entry["custom_dataset"] = partial(_as_datasets, splits)
                for split in ("train", "validation", "test"):
                    field = "training_split" if split == "train" else f"{split}_split"
                    entry[field] = split if split in splits else None
            found.append(entry)
    # In a group, lm_eval takes what is said of a task of its own beside what it knows of it; alone, instead of it.
    return {"group": "open_llm", "task": found}


def read_questions(folder: Path, name: str, shots: int) -> dict[str, list[dict]]:
    """Questions of one task from a folder, as the hub's data sets have them: from the split's name to its rows.

    The folder holds `arc_challenge_test.jsonl` and `arc_challenge_train.jsonl` (lines with `query`, `choices`, `gold`,
    or the hub's), `hellaswag_val.jsonl`, `truthfulqa_mc_task.json`, `mmlu/dev/<subject>_dev.csv` and
    `mmlu/test/<subject>_test.csv`: what the data sets' authors publish.
    """
    if name == "arc_challenge":
        splits = {"test": "arc_challenge_test.jsonl"} | ({"train": "arc_challenge_train.jsonl"} if shots else {})
        get = "hf download allenai/ai2_arc --repo-type dataset --local-dir ai2_arc, written as JSON lines"
        return {split: _json_lines(folder / file, ARC_URL, get, _arc) for split, file in splits.items()}
    if name == "hellaswag":
        url = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
        return {"validation": _json_lines(folder / "hellaswag_val.jsonl", url, f"curl -LO {url}")}
    if name == "truthfulqa_mc2":
        url = "https://raw.githubusercontent.com/sylinrl/TruthfulQA/main/data/mc_task.json"
        file = folder / "truthfulqa_mc_task.json"
        _check(file, url, f"curl -L {url} -o {file.name}")
        return {"validation": _rows(file, lambda: read_json(file), _truthful)}
    url = "https://people.eecs.berkeley.edu/~hendrycks/data.tar"
    subject, get = name.removeprefix("mmlu_"), f"curl -LO {url} && tar xf data.tar && mv data mmlu"
    return {split: _mmlu(folder / "mmlu" / split / f"{subject}_{split}.csv", url, get) for split in ("test", "dev")}


def leaderboard_scores(results: Mapping, tasks: Sequence[LeaderboardTask] = LEADERBOARD) -> dict[str, dict]:
    """The leaderboard's columns from lm_eval's results by task.

    Returns:
        For each column that was run `score` in percent, its `standard_error`, `metric`, `shots` and number of `tasks`;
        MMLU is the mean over its subjects, each counted once, as the board had it.
    """
    scores = {}
    for task in tasks:
        rows = [row for name, row in results.items() if name == task.name or name.startswith(f"{task.name}_")]
        if rows:
            errors = [float(row[f"{task.metric}_stderr,none"]) for row in rows]
            scores[task.name] = {
                "score": 100 * sum(float(row[f"{task.metric},none"]) for row in rows) / len(rows),
                "standard_error": 100 * sum(error**2 for error in errors) ** 0.5 / len(rows),
                "metric": task.metric,
                "shots": task.shots,
                "tasks": len(rows),
            }
    return scores


def _subjects(folder: Path | None) -> list[str]:
    """Subjects of MMLU: those that lm_eval knows, and that a folder has if there is one."""
    if folder is not None:
        found = sorted((folder / "mmlu" / "test").glob("*_test.csv"))
        # Without any, a missing file is named in the end.
        return [path.name.removesuffix("_test.csv") for path in found] or ["abstract_algebra"]
    from lm_eval.tasks import TaskManager

    tags = ("stem", "other", "social_sciences", "humanities")
    manager = TaskManager()
    names = [name for tag in tags for name in manager.task_index[f"mmlu_{tag}_tasks"].tags]
    return sorted(name.removeprefix("mmlu_") for name in names)


def _as_datasets(splits: Mapping[str, list[dict]], **_) -> dict:
    """What lm_eval calls for a task's data; it passes the task's metadata, of which none matters."""
    from datasets import Dataset

    return {split: Dataset.from_list(rows) for split, rows in splits.items()}


def _arc(row: dict) -> dict:
    if "query" not in row:
        return row
    labels = [chr(ord("A") + i) for i in range(len(row["choices"]))]
    return {
        "question": row["query"].removeprefix("Question: "),
        "choices": {"text": row["choices"], "label": labels},
        "answerKey": labels[row["gold"]],
    }


def _truthful(row: dict) -> dict:
    targets = {
        kind: {"choices": list(row[kind]), "labels": list(row[kind].values())}
        for kind in ("mc1_targets", "mc2_targets")
    }
    return {"question": row["question"], **targets}


def _mmlu(file: Path, url: str, get: str) -> list[dict]:
    _check(file, url, get)
    try:
        # Not str.splitlines: texts may hold separators such as U+0085, which end no line.
        lines = list(csv.reader(io.StringIO(read_text(file), newline="")))
    except csv.Error as error:
        raise InputError(f"{file} is not CSV ({error}): download it anew") from None
    if lines and lines[0][:1] == ["question"] and lines[0][-1:] == ["answer"]:
        lines = lines[1:]
    rows = []
    for i, line in enumerate(lines):
        if len(line) != 6 or line[5] not in tuple("ABCD0123"):
            raise InputError(f"{file}: question {i} has not 4 choices and an answer of A to D or 0 to 3")
        answer = "ABCD".find(line[5]) if line[5] in "ABCD" else int(line[5])
        rows.append({"question": line[0], "choices": line[1:5], "answer": answer})
    return rows


def _json_lines(file: Path, url: str, get: str, row: Callable[[dict], dict] = dict) -> list[dict]:
    _check(file, url, get)
    return _rows(file, lambda: (fields for _, fields in read_json_lines(file)), row)


def _rows(file: Path, read: Callable[[], Iterable[dict]], row: Callable[[dict], dict]) -> list[dict]:
    try:
        return [row(fields) for fields in read()]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{file} has not the fields of its data set ({what}): download it anew") from None


def _check(file: Path, url: str, get: str) -> None:
    if not os.path.isfile(file):
        raise InputError(f"{file} is missing: it comes from {url} (in {file.parent}: {get})")
