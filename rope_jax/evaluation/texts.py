"""The texts that perplexities are measured on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rope_jax.data.corpus import open_corpus
from rope_jax.data.pipeline import token_documents
from rope_jax.data.source import TextSource
from rope_jax.data.tokenizer import Tokenizer
from rope_jax.errors import InputError

# Words in the test split of PG19, by which its own word-level perplexity divides (arXiv 1911.05507).
PG19_TEST_WORDS = 6_966_499


@dataclasses.dataclass(frozen=True)
class Texts:
    """Documents to measure on: token ids, int `[n]`, without special tokens.

    Attributes:
        sliding: documents for sliding-window perplexity.
        sliding_bytes: their UTF-8 bytes.
        position: documents for perplexity by position.
        source: where the documents come from; kept with every result.
        words: words of all documents in `sliding`, if there is a published number.
    """

    sliding: Sequence[np.ndarray]
    sliding_bytes: Sequence[int]
    position: Sequence[np.ndarray]
    source: Mapping[str, str] = dataclasses.field(default_factory=dict)
    words: int | None = None


@dataclasses.dataclass(frozen=True)
class TextSelection:
    """Which documents of a corpus are measured on.

    Attributes:
        name: name of the corpus.
        path: its folder.
        split: its split.
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
            raise InputError("`path` is empty: name the folder of texts (.txt, .jsonl) to measure on", field="path")
        return self.tokenize(open_corpus(self.name, self.path, cache)[self.split], tokenizer)

    def tokenize(self, documents: TextSource, tokenizer: Tokenizer) -> Texts:
        """Tokenizes the documents of an open split."""
        most = max(self.max_tokens, self.position_tokens)
        ids = [ids for _, ids in token_documents(documents, tokenizer, most, self.document_tokens or None)]
        sliding = _first_tokens(ids, self.max_tokens)
        # The published number of words is that of the whole split.
        whole = sum(map(len, sliding)) < self.max_tokens and not self.document_tokens
        return Texts(
            sliding=sliding,
            sliding_bytes=[len(tokenizer.decode(document).encode()) for document in sliding],
            position=_first_tokens(ids, self.position_tokens),
            source={"name": self.name, "path": self.path},
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
