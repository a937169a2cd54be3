"""The samples of a benchmark on disk: made once, checked before the model is read, the same after an interruption."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path

from experiments.progress import bar
from experiments.suites import Bench, Part, Suite
from rope_jax.errors import InputError
from rope_jax.evaluation.sample import Sample, from_json, to_json
from rope_jax.files import write_text


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Samples of one task at one length.

    Attributes:
        task: name of the task.
        length: tokens; 0 for a task that has no length of its own.
        path: file with the samples.
    """

    task: str
    length: int
    path: Path


@dataclasses.dataclass(frozen=True)
class NotRun:
    """What cannot be run.

    Attributes:
        suite: its name.
        task: of the suite; empty for all of them.
        length: tokens; 0 for all lengths.
        reason: why, and what helps.
    """

    suite: str
    task: str
    length: int
    reason: str

    @property
    def what(self) -> str:
        """Suite, task and length in words."""
        task = f"{self.suite}, {self.task}" if self.task and self.task != self.suite else self.suite
        return f"{task} at {self.length:,} tokens" if self.length else task


def prepare_samples(
    name: str, suite: Suite, bench: Bench, folder: Path, claim: Callable[[], None]
) -> tuple[list[Prepared], list[NotRun]]:
    """Makes the samples of a suite, as far as they are not there.

    Args:
        name: of the suite.
        suite: the suite.
        bench: what samples are made for.
        folder: where they are kept.
        claim: called before anything is written.

    Returns:
        What can be run, and what cannot.

    Raises:
        InputError: if the folder holds samples that were made from other files.
    """
    prepared, missing = [], []
    for part in bar(f"samples of {name}")(suite.parts(bench)):
        path = folder / f"{part.task}-{part.length}.jsonl" if part.length else folder / f"{part.task}.jsonl"
        if path.exists():
            _check_source(path, part)
        else:
            try:
                samples = list(_checked(part, suite))
            except InputError as error:
                missing.append(NotRun(name, part.task, part.length, str(error)))
                continue
            lines = [{"source": part.source}, *map(to_json, samples)]
            claim()
            write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        prepared.append(Prepared(part.task, part.length, path))
    return prepared, _summed_up(missing, prepared)


def read_part(prepared: Prepared) -> list[Sample]:
    """The samples of a part."""
    with prepared.path.open(encoding="utf-8") as file:
        next(file)
        return [from_json(json.loads(line)) for line in file]


def _summed_up(missing: list[NotRun], prepared: list[Prepared]) -> list[NotRun]:
    """One line where nothing of a suite, or of a task, can be run for one reason."""
    if missing and not prepared and len({m.reason for m in missing}) == 1:
        return [NotRun(missing[0].suite, "", 0, missing[0].reason)]
    running = {p.task for p in prepared}
    lines = []
    for m in missing:
        reasons = {other.reason for other in missing if other.task == m.task}
        lines.append(dataclasses.replace(m, length=0) if len(reasons) == 1 and m.task not in running else m)
    return list(dict.fromkeys(lines))


def _checked(part: Part, suite: Suite):
    samples = iter(part.make())
    first = next(samples)
    # Whatever scoring needs must be there before hours of predictions.
    suite.score(first, "")
    return itertools.chain([first], samples)


def _check_source(path: Path, part: Part) -> None:
    with path.open(encoding="utf-8") as file:
        source = json.loads(next(file))["source"]
    if source != part.source:
        raise InputError(
            f"{path} was made from {source or 'nothing'}, and now the config names {part.source or 'nothing'}: choose "
            "another --workdir, or delete that file and its predictions to make it anew"
        )
