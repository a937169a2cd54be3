"""The 13 sets of LongBench-E (Bai et al., arXiv 2308.14508)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from rope_jax.evaluation.longbench import metrics

# Buckets of a row's `length`, which counts words: name and the first length that is too long for it.
BUCKETS = (("0-4k", 4000), ("4-8k", 8000), ("8k+", None))


@dataclasses.dataclass(frozen=True)
class LongBenchSet:
    """What is particular to a set.

    Attributes:
        metric: score in [0, 1] of a prediction against one answer and the row's classes.
        max_new_tokens: tokens to generate.
        first_line: whether only the first line of a prediction counts.
        stop: strings that end a prediction.
        min_new_tokens: tokens before which it may not end.
    """

    metric: Callable[[str, str, list[str]], float]
    max_new_tokens: int
    first_line: bool = False
    stop: tuple[str, ...] = ()
    min_new_tokens: int = 0


SETS: dict[str, LongBenchSet] = {
    "qasper": LongBenchSet(metrics.qa_f1, 128),
    "multifieldqa_en": LongBenchSet(metrics.qa_f1, 64),
    "hotpotqa": LongBenchSet(metrics.qa_f1, 32),
    "2wikimqa": LongBenchSet(metrics.qa_f1, 32),
    "gov_report": LongBenchSet(metrics.rouge_l, 512),
    "multi_news": LongBenchSet(metrics.rouge_l, 512),
    "trec": LongBenchSet(metrics.classification, 64, first_line=True),
    "triviaqa": LongBenchSet(metrics.qa_f1, 32, first_line=True),
    # Models continue with another dialogue; the benchmark's own code stops generating there.
    "samsum": LongBenchSet(metrics.rouge_l, 128, first_line=True, stop=("\n",), min_new_tokens=1),
    "passage_count": LongBenchSet(metrics.count, 32),
    "passage_retrieval_en": LongBenchSet(metrics.retrieval, 32),
    "lcc": LongBenchSet(metrics.code_similarity, 64),
    "repobench-p": LongBenchSet(metrics.code_similarity, 64),
}


def bucket(length: int) -> str:
    """Name of the bucket of a row with `length` words."""
    return next(name for name, end in BUCKETS if end is None or length < end)
