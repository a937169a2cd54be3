"""The texts that perplexities are measured on."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from rope_jax.data.corpus import SPLITS, open_corpus
from rope_jax.data.pipeline import token_documents
from rope_jax.data.text_files import list_text_files, read_documents
from rope_jax.data.tokenizer import Tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.identity import digest

# Words in the test split of PG19, by which its own word-level perplexity divides (arXiv 1911.05507).
PG19_TEST_WORDS = 6_966_499


@dataclasses.dataclass(frozen=True)
class Texts:
    """Documents to measure on: token ids, int `[n]`, without special tokens.

    Attributes:
        sliding: documents for sliding-window perplexity.
        sliding_bytes: their UTF-8 bytes.
        position: documents for perplexity by position.
        words: words of all documents in `sliding`, if there is a published number.
    """

    sliding: Sequence[np.ndarray]
    sliding_bytes: Sequence[int]
    position: Sequence[np.ndarray]
    words: int | None = None

    @cached_property
    def digest(self) -> str:
        """Digest of all tokens."""
        sliding, position = ([np.int32(ids).tobytes() for ids in part] for part in (self.sliding, self.position))
        return digest(*sliding, "by position", *position)


@dataclasses.dataclass(frozen=True)
class TextSelection:
    """Which documents of a corpus are measured on.

    Attributes:
        name: name of the corpus.
        path: its folder.
        split: its split; all documents are the 'test' split of a folder that names no splits.
        max_tokens: tokens of the split for sliding-window perplexity.
        position_tokens: tokens of the split for perplexity by position.
        document_tokens: tokens of each document at most; 0: all.
    """

    name: str
    path: str = ""
    split: str = "test"
    max_tokens: int = 1_000_000
    position_tokens: int = 1_000_000
    document_tokens: int = 0

    def open(self, cache: Path, tokenizer: Tokenizer) -> Texts:
        """Opens the corpus, which prepares its files in `cache`, and tokenizes the documents."""
        if self.name != "python_stdlib" and not self.path:
            raise InputError("`path` is empty: name the folder of texts (.txt, .jsonl) to measure on")
        return self.tokenize(self._documents(cache), tokenizer)

    def _documents(self, cache: Path) -> Iterable[Mapping[str, str]]:
        folder = Path(self.path)
        plain = self.name == "text_folder" and not any(os.path.isdir(folder / split) for split in SPLITS)
        files = list_text_files(folder) if plain and self.split == "test" and os.path.isdir(folder) else ()
        if files:
            return (vars(document) for document in read_documents(folder, files))
        return open_corpus(self.name, self.path, cache)[self.split]

    def tokenize(self, documents: Iterable[Mapping[str, str]], tokenizer: Tokenizer) -> Texts:
        """Tokenizes documents, objects with `id` and `text`."""
        most = max(self.max_tokens, self.position_tokens)
        ids = [ids for _, ids in token_documents(documents, tokenizer, most, self.document_tokens or None)]
        sliding = _first_tokens(ids, self.max_tokens)
        # The published number of words is that of the whole split.
        whole = sum(map(len, sliding)) < self.max_tokens and not self.document_tokens
        return Texts(
            sliding=sliding,
            sliding_bytes=[len(tokenizer.decode(document).encode()) for document in sliding],
            position=_first_tokens(ids, self.position_tokens),
            words=PG19_TEST_WORDS if whole and (self.name, self.split) == ("pg19", "test") else None,
        )


def _first_tokens(documents: list[np.ndarray], budget: int) -> list[np.ndarray]:
    """The first documents, the last one cut, up to a number of tokens in all."""
    kept = []
    for ids in documents:
        if budget <= 0:
            break
        kept.append(ids[:budget])
        budget -= len(kept[-1])
    return kept
