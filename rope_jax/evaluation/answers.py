"""Comparing short answers as SQuAD's evaluation does (arXiv 1606.05250), which most benchmarks took over."""

import re
import string
from collections import Counter

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and the articles a, an, the; runs of white space are one blank."""
    text = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def token_f1(prediction: str, reference: str) -> float:
    """F1 between the bags of words of two normalised answers: `2 p r / (p + r)` with precision p and recall r."""
    words, wanted = normalise(prediction).split(), normalise(reference).split()
    common = sum((Counter(words) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(words), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def contains(prediction: str, reference: str) -> bool:
    """Whether a prediction contains the reference, both normalised."""
    return normalise(reference) in normalise(prediction)


def equals(prediction: str, reference: str) -> bool:
    """Whether prediction and reference are the same, both normalised."""
    return normalise(prediction) == normalise(reference)
