"""The 13 sets of LongBench-E (Bai et al., arXiv 2308.14508) and their metrics.

Every metric takes a prediction, one answer and the classes of the row, and gives a score in [0, 1]. Each has its
quirks, because published scores have them.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from rope_jax.errors import InputError
from rope_jax.evaluation.answers import token_f1

# Buckets of a row's `length`, which counts words: name and the first length that belongs to it.
BUCKETS = {"0-4k": 0, "4-8k": 4000, "8k+": 8000}


def qa_f1(prediction: str, answer: str, classes: list[str]) -> float:
    """F1 between bags of normalised words."""
    return token_f1(prediction, answer)


def rouge_l(prediction: str, answer: str, classes: list[str]) -> float:
    """ROUGE-L F as the package `rouge` 1.0.1 computes it (`rouge_score` gives other numbers).

    Texts it cannot score, such as empty ones, score 0, as in the benchmark's own code.
    """
    rouge = _rouge()
    try:
        scores: Any = rouge.get_scores([prediction], [answer])
        return float(scores[0]["rouge-l"]["f"])
    # ValueError for empty texts, RecursionError for very long sentences, and whatever else: published scores have 0.
    except Exception:
        return 0.0


def classification(prediction: str, answer: str, classes: list[str]) -> float:
    """1 / n if the answer is among the n classes that the prediction names, once less specific ones are dropped."""
    named = [name for name in classes if name in prediction]
    # Removing from the list that is walked skips the element after a removed one. Published scores have it so.
    for name in named:
        if name in answer and name != answer:
            named.remove(name)
    return 1 / len(named) if answer in named else 0.0


def count(prediction: str, answer: str, classes: list[str]) -> float:
    """Share of the numbers in the prediction that are the answer; 0 without numbers."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(answer) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, answer: str, classes: list[str]) -> float:
    """Share of the numbers in the prediction that are N of the answer `Paragraph N`; 0 without numbers."""
    wanted = re.search(r"Paragraph (\d+)", answer)
    if wanted is None:
        raise InputError(f"the answer {answer!r} of a passage_retrieval_en row is not of the form 'Paragraph N'")
    return count(prediction, wanted.group(1), classes)


def code_similarity(prediction: str, answer: str, classes: list[str]) -> float:
    """Similarity of the first line of code to the answer, in steps of 0.01.

    It is `fuzzywuzzy.fuzz.ratio` on top of `difflib`, not of Levenshtein: the ratio of the characters in the longest
    matching blocks, found with difflib's heuristics.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    if line == answer:
        return 1.0
    if not line or not answer:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, line, answer).ratio()) / 100


@cache
def _rouge():
    try:
        from rouge import Rouge
    except ImportError:
        raise InputError(
            "the sets gov_report, multi_news and samsum are scored with the package rouge: "
            "pip install 'rope-jax[eval]' (or rouge==1.0.1)"
        ) from None
    return Rouge(metrics=["rouge-l"])


@dataclasses.dataclass(frozen=True)
class LongBenchSet:
    """The metric of a set, and how its answers are generated and cut.

    `first_line` scores only the first line of a prediction; `min_new_tokens` come before it may end.
    """

    metric: Callable[[str, str, list[str]], float]
    max_new_tokens: int
    first_line: bool = False
    stop: tuple[str, ...] = ()
    min_new_tokens: int = 0


SETS: dict[str, LongBenchSet] = {
    "qasper": LongBenchSet(qa_f1, 128),
    "multifieldqa_en": LongBenchSet(qa_f1, 64),
    "hotpotqa": LongBenchSet(qa_f1, 32),
    "2wikimqa": LongBenchSet(qa_f1, 32),
    "gov_report": LongBenchSet(rouge_l, 512),
    "multi_news": LongBenchSet(rouge_l, 512),
    "trec": LongBenchSet(classification, 64, first_line=True),
    "triviaqa": LongBenchSet(qa_f1, 32, first_line=True),
    # Models continue with another dialogue; the benchmark's own code stops generating there.
    "samsum": LongBenchSet(rouge_l, 128, first_line=True, stop=("\n",), min_new_tokens=1),
    "passage_count": LongBenchSet(count, 32),
    "passage_retrieval_en": LongBenchSet(retrieval, 32),
    "lcc": LongBenchSet(code_similarity, 64),
    "repobench-p": LongBenchSet(code_similarity, 64),
}


def bucket(length: int) -> str:
    """Name of the bucket of a row with `length` words."""
    return [name for name, start in BUCKETS.items() if start <= max(length, 0)][-1]
