"""What is measured without asking questions, stage by stage: perplexity here, LongPPL and the leaderboard beside it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.progress import bar
from rope_jax.data.tokenizer import Tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.perplexity import (
    CONVENTIONS,
    PG19_TEST_WORDS,
    perplexity,
    perplexity_by_position,
    position_edges,
)
from rope_jax.evaluation.suite import EvaluationTexts
from rope_jax.files import read_record, write_json
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        config: the run's config.
        model: shape of the model.
        params: its parameters.
        rope: scale vector.
        tokenizer: its tokenizer.
        mesh: devices.
        original: pre-training context, tokens.
        lengths: windows, tokens.
        token_nll: of `make_token_nll`; one for all scale vectors, so that it is compiled once.
    """

    config: ConfigDict
    model: LlamaConfig
    params: Mapping
    rope: ScaleVector
    tokenizer: Tokenizer
    mesh: Mesh
    original: int
    lengths: tuple[int, ...]
    token_nll: Callable[..., np.ndarray]


def stages(
    path: Path,
    of: Mapping,
    wanted: Mapping[str, Callable[[], dict]],
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, dict]:
    """Measures stage by stage, each kept in a file once it is done.

    Args:
        path: JSON file of the stages.
        of: what is measured on, which the file keeps as well.
        wanted: name of a stage to what gives its JSON-able record.
        progress: wraps the iterable of the stages left to do.

    Returns:
        Name to record, with its `seconds`.

    Raises:
        InputError: if the file was measured on something else.
    """
    saved = read_record(path) or {"of": dict(of), "stages": {}}
    if saved["of"] != dict(of):
        differing = next(key for key in of if saved["of"].get(key) != of[key])
        raise InputError(
            f"{path} was measured with {differing} = {saved['of'].get(differing)!r}, and now it is {of[differing]!r}: "
            "choose another --workdir, or delete that file to measure anew"
        )
    waiting = [name for name in wanted if name not in saved["stages"]]
    for name in progress(waiting) if waiting else ():
        began = time.monotonic()
        record = wanted[name]()
        saved["stages"][name] = {**record, "seconds": time.monotonic() - began}
        write_json(path, saved)
    return {name: saved["stages"][name] for name in wanted}


def text_source(config: ConfigDict) -> dict[str, str]:
    """Where the texts come from."""
    return {"config.data.name": config.data.name, "config.data.path": config.data.path}


def measure_perplexity(subject: Subject, texts: EvaluationTexts, path: Path) -> dict[str, dict]:
    """Perplexity at every window in every convention, and by position.

    Args:
        subject: what is measured.
        texts: what on.
        path: where the stages are kept.

    Returns:
        `{"WINDOW CONVENTION": record, "by_position": record}`.

    Raises:
        InputError: see `stages`.
    """
    config, fields, bos = subject.config, subject.config.eval, subject.tokenizer.bos_id
    score = partial(subject.token_nll, subject.params, subject.rope)
    common = {"bos_id": bos, "batch_size": fields.batch, "seed": config.seed}
    # The published number of words is that of the whole split.
    tokens = sum(map(len, texts.sliding))
    whole = tokens < fields.max_tokens and not fields.document_tokens
    pg19 = config.data.name == "pg19" and fields.split == "test"

    def sliding(window: int, convention: str) -> dict:
        result = perplexity(
            score,
            texts.sliding,
            window,
            min(fields.stride, window // 2),
            convention=convention,
            document_bytes=texts.sliding_bytes,
            words=PG19_TEST_WORDS if pg19 and whole else None,
            progress=bar(f"perplexity at {window}, {convention}"),
            **common,
        )
        return dataclasses.asdict(result)

    def by_position() -> dict:
        window = max(subject.lengths)
        result = perplexity_by_position(
            score,
            texts.position,
            window,
            edges=position_edges(window, subject.original),
            progress=bar("perplexity by position"),
            **common,
        )
        return dataclasses.asdict(result)

    wanted = {
        f"{window} {convention}": partial(sliding, window, convention)
        for convention in fields.conventions
        for window in subject.lengths
    }
    return stages(path, text_source(config), wanted | {"by_position": by_position})


def check_perplexity(
    config: ConfigDict, lengths: tuple[int, ...], tokenizer: Tokenizer, texts: EvaluationTexts
) -> None:
    """Checks that every stage of `measure_perplexity` can be measured; InputError if not."""
    for convention in config.eval.conventions:
        if convention not in CONVENTIONS:
            raise InputError(f"config.eval.conventions has {convention!r}: use {', '.join(map(repr, CONVENTIONS))}")
    longest = max((len(document) for document in texts.position), default=0)
    if longest + (tokenizer.bos_id is not None) < max(lengths):
        raise InputError(
            f"no document of split {config.eval.split} fills a window of {max(lengths)} tokens: the longest has "
            f"{longest}. Name longer texts in config.data.path, or raise config.eval.document_tokens and "
            "config.eval.position_tokens if they cut them"
        )
