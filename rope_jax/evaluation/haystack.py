"""Running text as a haystack: words, and where sentences end among them."""

import bisect
import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from rope_jax.errors import InputError
from rope_jax.evaluation.data_files import read_texts
from rope_jax.files import read_json

ESSAYS_COMMAND = (
    "git clone https://github.com/NVIDIA/RULER && cd RULER/scripts/data/synthetic/json && "
    "pip install html2text beautifulsoup4 tqdm && python download_paulgraham_essay.py"
)

# A word that ends a sentence: a full stop and the like, and quotes or brackets after it.
_END = re.compile(r".*[.!?][\"'\u2019\u201d)\]]*$")
# Abbreviations and initials before which a full stop ends nothing.
_ABBREVIATION = re.compile(
    r"^[\"'\u2018\u201c(\[]*(?:Mr|Mrs|Ms|Messrs|Dr|Prof|Rev|Hon|Sir|St|Col|Capt|Lt|Sgt|Gen|Jr|Sr|vs|etc|No|vol|i\.e|"
    r"e\.g|[A-Z])\.$"
)


@dataclasses.dataclass(frozen=True)
class Haystack:
    """A text without line breaks: its words, punctuation included, and for every sentence one past its last word."""

    words: tuple[str, ...]
    ends: tuple[int, ...]

    def hide(self, needles: Sequence[str], count: int, depths: Sequence[float]) -> str:
        """The first `count` words of the text with needles between its sentences; a short text starts over.

        Depths are ascending shares of the sentences in front of each needle, in percent. The last sentence may be cut
        short.
        """
        rounds, rest = divmod(count, len(self.words))
        words = [*(self.words * rounds), *self.words[:rest]]
        ends = [r * len(self.words) + end for r in range(rounds + 1) for end in self.ends]
        ends = ends[: bisect.bisect_left(ends, count)]
        edges = [0, *ends, count]  # Of all sentences, the last of which may be cut short.
        cuts = [0, *(edges[int((len(edges) - 1) * depth / 100)] for depth in depths), count]
        texts = [" ".join(words[start:end]) for start, end in itertools.pairwise(cuts)]
        return " ".join(itertools.chain(*zip(texts, needles), texts[-1:]))


def make_haystack(texts: Iterable[str], max_words: int | None = None) -> Haystack:
    """Joins texts into a haystack, up to the one that reaches `max_words`."""
    words: list[str] = []
    ends: list[int] = []
    for text in texts:
        words += text.split()
        start = ends[-1] if ends else 0
        ends += [i + 1 for i in range(start, len(words)) if _ends_sentence(words, i)]
        if max_words is not None and len(words) >= max_words:
            break
    return Haystack(tuple(words), tuple(ends))


def read_haystack(path: Path, max_words: int) -> Haystack:
    """Reads texts to hide needles in, up to the one that reaches `max_words`.

    The path is a folder of texts (`.txt` files, or `.jsonl` files with `text`, also gzip), read in order of their
    names, or RULER's own `PaulGrahamEssays.json`. The longest prompt's number of tokens is words enough.
    """
    path = Path(path)
    if os.path.isfile(path):
        value = read_json(path)
        if not (isinstance(value, dict) and isinstance(value.get("text"), str)):
            raise InputError(f'{path} must be a folder of texts or a JSON file with an object with "text"')
        texts = iter([value["text"]])
    else:
        what = "essays to hide needles in; any folder of .txt files will do, Paul Graham's essays are RULER's own"
        texts = read_texts(path, what, ESSAYS_COMMAND)
    haystack = make_haystack(texts, max_words)
    if not haystack.words:
        raise InputError(f"{path} has no words: name a folder with text in it")
    return haystack


def _ends_sentence(words: Sequence[str], i: int) -> bool:
    word = words[i]
    if i + 1 == len(words):
        return True
    if not _END.match(word) or _ABBREVIATION.match(word):
        return False
    # A word in lower case continues the sentence: "What!" said he.
    return not words[i + 1].lstrip("\"'\u2018\u201c([")[:1].islower()
