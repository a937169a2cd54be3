"""Rows of LongBench-E as samples: prompts filled in and truncated in the middle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rope_jax.data.tokenizer import Tokenizer
from rope_jax.evaluation.longbench.prompts import fill
from rope_jax.evaluation.longbench.scoring import score_prediction
from rope_jax.evaluation.longbench.sets import BUCKETS, SETS, bucket
from rope_jax.evaluation.sample import Sample

# First number of words of each bucket, the `length` of its samples.
BUCKET_STARTS = {name: start for (name, _), start in zip(BUCKETS, (0, *(end for _, end in BUCKETS if end)))}


def truncate_middle(tokenizer: Tokenizer, text: str, max_length: int) -> str:
    """Cuts the middle out of a prompt of more than `max_length` tokens, BOS included.

    Returns:
        The text itself if it fits; else the texts of its first and last `max_length // 2` ids, joined, where the first
        half counts BOS. Tokenised again it may have a few more or fewer tokens, as in the benchmark.
    """
    ids = np.asarray(tokenizer.encode(text))
    if tokenizer.bos_id is not None:
        ids = np.concatenate([[tokenizer.bos_id], ids])
    if len(ids) <= max_length:
        return text
    half = max_length // 2
    return tokenizer.decode(ids[:half]) + tokenizer.decode(ids[len(ids) - half :])


def longbench_samples(
    name: str, rows: Iterable[Mapping[str, Any]], template: str, tokenizer: Tokenizer, max_length: int
) -> list[Sample]:
    """The samples of a set, one for each row.

    `length` is the first number of words of the bucket (0, 4000, 8000); `details` holds `words`, the row's length, its
    `bucket`, and `classes`.
    """
    kind = SETS[name]
    return [
        Sample(
            id=f"{name}/{row['_id']}",
            task=name,
            prompt=truncate_middle(tokenizer, fill(template, row["context"], row["input"]), max_length),
            references=tuple(row["answers"]),
            max_new_tokens=kind.max_new_tokens,
            length=BUCKET_STARTS[bucket(row["length"])],
            stop=kind.stop,
            min_new_tokens=kind.min_new_tokens,
            details={
                "words": row["length"],
                "bucket": bucket(row["length"]),
                "classes": list(row.get("all_classes") or []),
            },
        )
        for row in rows
    ]


def longbench_score(sample: Sample, prediction: str) -> float:
    """Score in [0, 1] of a prediction."""
    return score_prediction(sample.task, prediction, sample.references, sample.details["classes"])


def prediction_row(sample: Sample, prediction: str) -> dict[str, Any]:
    """The line of a prediction file in the benchmark's own form, with the sample's id."""
    return {
        "id": sample.id,
        "pred": prediction,
        "answers": list(sample.references),
        "all_classes": list(sample.details["classes"]) or None,
        "length": sample.details["words"],
    }
