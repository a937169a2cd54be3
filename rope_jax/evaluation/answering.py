"""A model answers samples, and predictions are kept batch by batch."""

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rope_jax.data.tokenizer import Tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.benchmark import Subject
from rope_jax.evaluation.identity import digest
from rope_jax.evaluation.kept import Kept
from rope_jax.evaluation.sample import Sample
from rope_jax.files import shown
from rope_jax.model.generate import Stops


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A generated text with its score in [0, 1] and its share, in seconds, of the time of its batch.

    `digest` changes with anything in the sample or its tokens.
    """

    digest: str
    prediction: str
    score: float
    seconds: float


def answer_samples(
    samples: Sequence[Sample],
    subject: Subject,
    score: Callable[[Sample, str], float],
    kept: Kept,
    description: str = "",
) -> dict[str, Prediction]:
    """Predicts every sample whose prediction is not kept; gives predictions by sample id.

    An interruption does not change which samples share a batch: the missing rows of a batch are predicted again with
    the others, because a row's answer may depend on its batch by rounding.
    """
    setting = subject.setting
    tokenizer, batch_size = setting.tokenizer, setting.generate_batch
    prompts = {sample.id: with_bos(tokenizer, sample.prompt) for sample in samples}
    digests = {sample.id: sample_digest(sample, prompts[sample.id]) for sample in samples}
    done = read_predictions(kept, digests)
    for stops, group in _by_stops(samples, tokenizer):
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
            rows = {}
            for i, tokens in batch:
                sample = waiting[i]
                text = answer_text(sample, tokenizer.decode(tokens))
                if sample.id not in done:
                    rows[sample.id] = Prediction(digests[sample.id], text, float(score(sample, text)), seconds)
            kept.append({name: vars(row) for name, row in rows.items()})
            done |= rows
            began = time.monotonic()
    return done


def answer_text(sample: Sample, text: str) -> str:
    """The part of a generated text before the first stop string; all of it with `min_new_tokens`."""
    if sample.min_new_tokens:
        return text
    ends = [place for string in sample.stop if (place := text.find(string)) >= 0]
    return text[: min(ends)] if ends else text


def sample_digest(sample: Sample, tokens: np.ndarray) -> str:
    """Digest of a sample and its prompt's tokens, int32 `[n]`."""
    return digest(dataclasses.asdict(sample), tokens.tobytes())


def read_predictions(kept: Kept, digests: Mapping[str, str]) -> dict[str, Prediction]:
    """The kept predictions of the samples with these digests, by sample id; those of changed samples are dropped."""
    rows = {name: _prediction(f"{kept.path}: {name}", row) for name, row in kept.read().items()}
    changed = [name for name, row in rows.items() if digests.get(name, row.digest) != row.digest]
    if changed:
        kept.say(f"{kept.path}: {len(changed)} of its prompts have changed, {changed[0]} first: predicted again")
        rows = {name: row for name, row in rows.items() if name not in changed}
        kept.replace({name: vars(row) for name, row in rows.items()})
    return {name: row for name, row in rows.items() if name in digests}


def _prediction(place: str, row: Mapping[str, Any]) -> Prediction:
    match row:
        case {"digest": str(sample), "prediction": str(text), "score": score, "seconds": seconds}:
            numbers = all(type(value) in (int, float) for value in (score, seconds))
            # An integer may be too large for a float.
            if len(row) == 4 and numbers and 0 <= score <= 1 and 0 <= seconds <= sys.float_info.max:
                return Prediction(sample, text, float(score), float(seconds))
    raise InputError(f"{place} is damaged, it is {shown(row)}: delete that line, or choose another `folder`")


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
