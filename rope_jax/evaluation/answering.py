"""A model answers samples; predictions are appended to a file batch by batch, so that a run can stop at any moment."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from rope_jax.data.tokenizer import Tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.benchmark import Subject
from rope_jax.evaluation.sample import Sample
from rope_jax.model.generate import Stops


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A generated text with its score in [0, 1] and its share, in seconds, of the time of its batch.

    `digest` changes with anything in the sample, its prompt above all.
    """

    id: str
    digest: str
    prediction: str
    score: float
    seconds: float


def answer_samples(
    samples: Sequence[Sample],
    subject: Subject,
    score: Callable[[Sample, str], float],
    path: Path | None = None,
    description: str = "",
) -> dict[str, Prediction]:
    """Predicts every sample that a file of predictions lacks, and appends to it batch by batch.

    An interruption does not change which samples share a batch: the missing rows of a batch are predicted again with
    the others, because a row's answer may depend on its batch by rounding. Without a path nothing is kept.
    """
    setting = subject.setting
    tokenizer, batch_size = setting.tokenizer, setting.generate_batch
    done = read_predictions(path, samples) if path else {}
    for stops, group in _by_stops(samples, tokenizer):
        prompts = {sample.id: with_bos(tokenizer, sample.prompt) for sample in group}
        # As `generate` sorts them, so that its batches are these.
        group.sort(key=lambda sample: (len(prompts[sample.id]), sample.max_new_tokens))
        batches = [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
        waiting = [s for batch in batches if any(s.id not in done for s in batch) for s in batch]
        began = time.monotonic()
        for batch in subject.generate(
            [prompts[sample.id] for sample in waiting],
            [sample.max_new_tokens for sample in waiting],
            stops=stops,
            batch_size=batch_size,
            progress=setting.progress(description),
        ):
            seconds = round((time.monotonic() - began) / len(batch), 4)
            rows = []
            for i, tokens in batch:
                sample = waiting[i]
                text = answer_text(sample, tokenizer.decode(tokens))
                rows.append(Prediction(sample.id, digest(sample), text, float(score(sample, text)), seconds))
            rows = [row for row in rows if row.id not in done]
            if path:
                append_predictions(path, rows)
            done |= {row.id: row for row in rows}
            began = time.monotonic()
    return done


def answer_text(sample: Sample, text: str) -> str:
    """The part of a generated text before the first stop string; all of it with `min_new_tokens`."""
    if sample.min_new_tokens:
        return text
    ends = [place for string in sample.stop if (place := text.find(string)) >= 0]
    return text[: min(ends)] if ends else text


def digest(sample: Sample) -> str:
    """Digest of a sample: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(sample), sort_keys=True).encode()).hexdigest()[:16]


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


def _by_stops(samples: Sequence[Sample], tokenizer: Tokenizer) -> list[tuple[Stops, list[Sample]]]:
    groups: dict[tuple[tuple[str, ...], int], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.stop, sample.min_new_tokens), []).append(sample)
    return [(_stops(strings, least, tokenizer), group) for (strings, least), group in groups.items()]


def _stops(strings: tuple[str, ...], min_new_tokens: int, tokenizer: Tokenizer) -> Stops:
    tokens = set() if tokenizer.eos_id is None else {tokenizer.eos_id}
    if not min_new_tokens:
        return Stops(tokens, strings, tokenizer.decode if strings else None)
    # As in LongBench's own code, the last token of each string ends the answer and, like EOS, may not come too early.
    return Stops(tokens | {int(tokenizer.encode(string)[-1]) for string in strings}, min_new_tokens=min_new_tokens)


def with_bos(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The tokens of a text, int32 `[n]`, with the tokenizer's BOS, if any, in front."""
    tokens = np.asarray(tokenizer.encode(text), np.int32)
    return tokens if tokenizer.bos_id is None else np.concatenate([[np.int32(tokenizer.bos_id)], tokens])
