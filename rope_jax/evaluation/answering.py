"""Putting samples to a model: prompts to tokens, batches, answers kept as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from rope_jax.data.tokenizer import Tokenizer
from rope_jax.evaluation.predictions import Prediction, append_predictions, digest, read_predictions
from rope_jax.evaluation.sample import Sample
from rope_jax.model.generate import Stops


def answer_samples(
    samples: Sequence[Sample],
    path: Path,
    generate: Callable[..., Iterator[list[tuple[int, np.ndarray]]]],
    tokenizer: Tokenizer,
    score: Callable[[Sample, str], float],
    batch_size: int,
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, Prediction]:
    """Predicts every sample that a file of predictions lacks, and appends batch by batch.

    Batches are the same however often the work was interrupted, for which the missing rows of a batch are predicted
    with the others: a row's answer may depend on its batch by rounding.

    Args:
        samples: what is asked, with ids that differ.
        path: the file, see `rope_jax.evaluation.predictions`.
        generate: `rope_jax.model.generate.greedy_batches` with model and batch size given.
        tokenizer: the model's; its BOS, if any, goes in front of each prompt.
        score: of a sample's prediction.
        batch_size: of `generate`.
        progress: wraps the iterable of batches, for instance `tqdm`.

    Returns:
        Predictions by sample id, of all samples.

    Raises:
        InputError: see `read_predictions`.
    """
    done = read_predictions(path, samples)
    for stops, group in _by_stops(samples, tokenizer):
        prompts = {sample.id: _tokens(sample, tokenizer) for sample in group}
        # As `generate` sorts them, so that its batches are these.
        group.sort(key=lambda sample: (len(prompts[sample.id]), sample.max_new_tokens))
        batches = [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
        waiting = [s for batch in batches if any(s.id not in done for s in batch) for s in batch]
        began = time.monotonic()
        for batch in generate(
            [prompts[sample.id] for sample in waiting],
            [sample.max_new_tokens for sample in waiting],
            stops=stops,
            batch_size=batch_size,
            progress=progress,
        ):
            now = time.monotonic()
            rows = []
            for i, tokens in batch:
                sample = waiting[i]
                text = answer_text(sample, tokenizer.decode(tokens))
                seconds = round((now - began) / len(batch), 4)
                rows.append(Prediction(sample.id, digest(sample), text, float(score(sample, text)), seconds))
            rows = [row for row in rows if row.id not in done]
            append_predictions(path, rows)
            done |= {row.id: row for row in rows}
            began = time.monotonic()
    return done


def answer_text(sample: Sample, text: str) -> str:
    """The answer in a generated text: what comes before the first stop string.

    Args:
        sample: its sample.
        text: what was generated.

    Returns:
        The text up to there; of a sample that must have some tokens first, all of it.
    """
    if sample.min_new_tokens:
        return text
    ends = [place for string in sample.stop if (place := text.find(string)) >= 0]
    return text[: min(ends)] if ends else text


def _by_stops(samples: Sequence[Sample], tokenizer: Tokenizer) -> list[tuple[Stops, list[Sample]]]:
    groups: dict[tuple, list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.stop, sample.min_new_tokens), []).append(sample)
    return [(_stops(*key, tokenizer), group) for key, group in groups.items()]


def _stops(strings: tuple[str, ...], min_new_tokens: int, tokenizer: Tokenizer) -> Stops:
    tokens = set() if tokenizer.eos_id is None else {tokenizer.eos_id}
    if not min_new_tokens:
        return Stops(tokens, strings, tokenizer.decode if strings else None)
    # As in LongBench's own code, the last token of each string ends the answer and, like EOS, may not come too early.
    return Stops(tokens | {int(tokenizer.encode(string)[-1]) for string in strings}, min_new_tokens=min_new_tokens)


def _tokens(sample: Sample, tokenizer: Tokenizer) -> np.ndarray:
    tokens = np.asarray(tokenizer.encode(sample.prompt), np.int32)
    return tokens if tokenizer.bos_id is None else np.concatenate([[np.int32(tokenizer.bos_id)], tokens])
