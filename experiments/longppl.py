"""LongPPL of a model: key tokens by an evaluator, which is in memory only then, and the model's losses on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import settings
from experiments.measured import Subject, stages, text_source
from experiments.progress import bar
from experiments.reading import read_params
from rope_jax.data.tokenizer import Tokenizer, load_tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.longppl import (
    TokenNll,
    full_context_nll,
    key_tokens,
    long_perplexity,
    token_ends,
    transfer_keys,
)
from rope_jax.evaluation.nll import make_token_nll
from rope_jax.evaluation.suite import EvaluationTexts
from rope_jax.interop.hub import resolve_model
from rope_jax.interop.huggingface import check_model
from rope_jax.model.generate import bucket_length
from rope_jax.sharding import row_sharding, shards


def check_longppl(config: ConfigDict) -> Path:
    """Folder of LongPPL's evaluator; InputError if there is none."""
    if not config.eval.longppl_evaluator:
        raise InputError(
            "config.eval.longppl_evaluator is empty: name the model whose losses tell which tokens need a long "
            "context, a folder or hub id, the same for all models that are compared"
        )
    try:
        folder = resolve_model(config.eval.longppl_evaluator)
    except InputError as error:
        raise InputError(str(error).replace("config.model.path", "config.eval.longppl_evaluator")) from None
    check_model(folder)
    load_tokenizer(folder)
    return folder


def find_keys(
    config: ConfigDict,
    evaluator: Path,
    texts: EvaluationTexts,
    tokenizer: Tokenizer,
    length: int,
    mesh: Mesh,
    path: Path,
) -> list[np.ndarray]:
    """The key tokens of every document under LongPPL's evaluator, which is in memory only here.

    Args:
        config: the run's config.
        evaluator: folder of the evaluator.
        texts: documents.
        tokenizer: that of the evaluated model.
        length: tokens of a document, BOS included, that count.
        mesh: devices.
        path: where finished documents are kept.

    Returns:
        For each document bool `[n]`, in the evaluated model's tokens.
    """
    found, own = check_model(evaluator), load_tokenizer(evaluator)
    model = settings.computed(config, found.config)
    documents = longppl_documents(texts, tokenizer, length)

    # Read only if a document is left to do.
    loaded: list = []

    def keys(document: np.ndarray) -> dict:
        if not loaded:
            params = read_params(evaluator, model, mesh)
            score = make_token_nll(model, config.train.loss_chunk, row_sharding(mesh))
            loaded.append(_row_nll(partial(score, params, found.rope), mesh))
        ids = own.encode(tokenizer.decode(document))
        marked = key_tokens(loaded[0], ids, own.bos_id, config.eval.longppl_context)
        moved = transfer_keys(marked, token_ends(own, ids), token_ends(tokenizer, document))
        return {"keys": np.flatnonzero(moved).tolist()}

    of = {**text_source(config), "config.eval.longppl_evaluator": config.eval.longppl_evaluator}
    wanted = {str(i): partial(keys, document) for i, document in enumerate(documents)}
    marks = stages(path, of, wanted, bar("key tokens"))
    return [np.isin(np.arange(len(d)), marks[str(i)]["keys"]) for i, d in enumerate(documents)]


def measure_longppl(subject: Subject, texts: EvaluationTexts, keys: list[np.ndarray], path: Path) -> dict[str, dict]:
    """LongPPL, and the perplexity of all tokens of the same texts.

    Args:
        subject: what is measured.
        texts: documents.
        keys: see `find_keys`.
        path: where the result is kept.

    Returns:
        `{"longppl": record}`.
    """
    nll = _row_nll(partial(subject.token_nll, subject.params, subject.rope), subject.mesh)
    documents = longppl_documents(texts, subject.tokenizer, max(subject.lengths))

    def measure() -> dict:
        nlls = [full_context_nll(nll, d, subject.tokenizer.bos_id) for d in bar("LongPPL")(documents)]
        return dataclasses.asdict(long_perplexity(nlls, keys, subject.config.seed))

    of = {**text_source(subject.config), "config.eval.longppl_evaluator": subject.config.eval.longppl_evaluator}
    return stages(path, of, {"longppl": measure})


def longppl_documents(texts: EvaluationTexts, tokenizer: Tokenizer, length: int) -> list[np.ndarray]:
    """The beginnings of the documents that a model of that length reads whole."""
    return [document[: length - (tokenizer.bos_id is not None)] for document in texts.sliding]


def _row_nll(score: Callable[[np.ndarray, np.ndarray], np.ndarray], mesh: Mesh) -> TokenNll:
    """NLL of one row at a time, as LongPPL takes it; rows are padded to few lengths."""
    rows = shards(mesh, "rows")

    def nll(tokens: np.ndarray) -> np.ndarray:
        # Every device needs a row; the others are empty.
        padded = np.zeros((rows, bucket_length(len(tokens))), np.int32)
        padded[0, : len(tokens)] = tokens
        wanted = np.zeros(padded.shape, bool)
        wanted[0, : len(tokens) - 1] = True
        return np.asarray(score(padded, wanted))[0, : len(tokens) - 1]

    return nll
