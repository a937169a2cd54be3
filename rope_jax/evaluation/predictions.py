"""Predictions on disk: a line per sample, appended as they are made, so that a run can stop at any moment."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rope_jax.errors import InputError
from rope_jax.evaluation.sample import Sample, to_json


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model made of a sample.

    Attributes:
        id: id of the sample.
        digest: digest of the sample, which changes with its prompt.
        prediction: generated text.
        score: in [0, 1].
        seconds: its share of the time of its batch.
    """

    id: str
    digest: str
    prediction: str
    score: float
    seconds: float


def digest(sample: Sample) -> str:
    """A number that changes with anything in the sample, its prompt above all."""
    return hashlib.sha256(json.dumps(to_json(sample), sort_keys=True).encode()).hexdigest()[:16]


def read_predictions(path: Path, samples: Sequence[Sample]) -> dict[str, Prediction]:
    """Predictions of an earlier attempt by sample id; a last line cut short by a crash is removed from the file.

    InputError if a line is damaged, repeats an id, or answers a sample that is not asked now or has changed.
    """
    if not path.exists():
        return {}
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
    asked = {sample.id: digest(sample) for sample in samples}
    found: dict[str, Prediction] = {}
    for number, line in enumerate(content[:whole].decode("utf-8", errors="replace").split("\n")[:-1], 1):
        try:
            row = Prediction(**json.loads(line))
        except (ValueError, TypeError):
            raise InputError(f"{path}:{number} is damaged: delete that line, or choose another `folder`") from None
        if row.id in found:
            raise InputError(f"{path}:{number} is a second prediction for {row.id}: delete one of them")
        if asked.get(row.id) != row.digest:
            raise InputError(
                f"{path}:{number} answers another prompt than {row.id} has now: choose another `folder`, or delete "
                "that file to predict again"
            )
        found[row.id] = row
    return found


def append_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Appends lines, and returns when they are on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(dataclasses.asdict(prediction)) + "\n" for prediction in predictions))
        file.flush()
        os.fsync(file.fileno())
