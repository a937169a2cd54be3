"""LongBench's metrics, each with its quirks, for published scores have them.

Every metric takes a prediction, one answer and the classes of the row, and gives a score in [0, 1].
"""

from __future__ import annotations

import difflib
import re
from functools import cache
from typing import Any

from rope_jax.errors import InputError
from rope_jax.evaluation.answers import token_f1


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
