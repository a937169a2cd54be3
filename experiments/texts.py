"""The texts that perplexity is measured on."""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from rope_jax.data.pipeline import token_documents
from rope_jax.data.source import TextSource
from rope_jax.data.tokenizer import Tokenizer
from rope_jax.evaluation.suite import EvaluationTexts


def evaluation_texts(fields: ConfigDict, source: TextSource, tokenizer: Tokenizer) -> EvaluationTexts:
    """Tokenises a split, up to the configured numbers of tokens.

    Args:
        fields: `config.eval`.
        source: the split's documents.
        tokenizer: the model's.

    Returns:
        The documents for both perplexities.
    """
    most = max(fields.max_tokens, fields.position_tokens)
    documents = [ids for _, ids in token_documents(source, tokenizer, most, fields.document_tokens or None)]
    sliding = first_tokens(documents, fields.max_tokens)
    return EvaluationTexts(
        sliding=sliding,
        sliding_bytes=[len(tokenizer.decode(ids).encode()) for ids in sliding],
        position=first_tokens(documents, fields.position_tokens),
    )


def first_tokens(documents: list[np.ndarray], budget: int) -> list[np.ndarray]:
    """The first documents, the last one cut, up to a number of tokens in all."""
    kept = []
    for ids in documents:
        if budget <= 0:
            break
        kept.append(ids[:budget])
        budget -= len(kept[-1])
    return kept
