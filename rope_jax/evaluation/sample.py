"""A question of a benchmark, ready to be put to a model, and the answers that count."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Sample:
    """One question. Its fields are JSON-able, so that samples and predictions can be kept in files.

    Attributes:
        id: unique within a benchmark; predictions are kept under it.
        task: name of the task within the benchmark.
        prompt: text to continue, without special tokens; a base model's BOS goes in front of it.
        references: accepted answers, or all parts of the one answer: the benchmark's scorer knows which.
        max_new_tokens: tokens to generate, greedily.
        length: column of a table: tokens of prompt, BOS not counted, and answer; for LongBench-E the first number of
            words of its bucket.
        stop: strings, the first of which ends the answer and is no part of it.
        min_new_tokens: tokens before which neither a stop string nor the end token may come.
        details: what the scorer, or a reader of the results, needs besides.
    """

    id: str
    task: str
    prompt: str
    references: tuple[str, ...]
    max_new_tokens: int
    length: int
    stop: tuple[str, ...] = ()
    min_new_tokens: int = 0
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def from_json(fields: Mapping[str, Any]) -> Sample:
    """The sample whose fields were written as JSON, which has lists for tuples."""
    return Sample(**{**fields, "references": tuple(fields["references"]), "stop": tuple(fields["stop"])})
