"""What is measured without asking questions of our own: perplexity, LongPPL, the tasks of lm_eval."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import settings
from experiments.progress import bar
from rope_jax.data.tokenizer import Tokenizer, load_tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.leaderboard import LEADERBOARD, harness_tasks, leaderboard_scores
from rope_jax.evaluation.longppl import (
    TokenNll,
    full_context_nll,
    key_tokens,
    long_perplexity,
    token_ends,
    transfer_keys,
)
from rope_jax.evaluation.nll import make_token_nll
from rope_jax.evaluation.perplexity import (
    CONVENTIONS,
    PG19_TEST_WORDS,
    perplexity,
    perplexity_by_position,
    position_edges,
)
from rope_jax.evaluation.suite import EvaluationTexts
from rope_jax.interop.hub import resolve_model
from rope_jax.interop.huggingface import check_model, read_model
from rope_jax.model.config import LlamaConfig
from rope_jax.model.generate import bucket_length
from rope_jax.report.files import read_json, write_json
from rope_jax.rope.embedding import ScaleVector
from rope_jax.training.sharding import batch_sharding, cache_sharding, param_shardings


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
    saved = read_json(path) or {"of": dict(of), "stages": {}}
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
            params = read_model(evaluator, param_shardings(model, mesh), model.param_dtype).params
            score = make_token_nll(model, config.train.loss_chunk, batch_sharding(mesh))
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


@dataclasses.dataclass(frozen=True)
class Harness:
    """The leaderboard's tasks with their questions.

    Attributes:
        manager: lm_eval's TaskManager, which takes seconds to make.
        tasks: lm_eval's tasks by name.
        reasons: of columns that cannot be run.
    """

    manager: object
    tasks: Mapping
    reasons: Mapping[str, str]


def load_harness(config: ConfigDict) -> Harness:
    """Loads the leaderboard's tasks.

    Args:
        config: the run's config.

    Returns:
        The tasks, and of those that cannot be run the reason.

    Raises:
        InputError: if lm_eval is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("the package lm_eval is not installed: pip install 'rope-jax[eval]'")
    from lm_eval.tasks import TaskManager

    # It warns of every default it takes.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    fields = config.eval
    folder = Path(fields.leaderboard).expanduser() if fields.leaderboard else None
    manager, tasks, reasons = TaskManager(), {}, {}
    for column in LEADERBOARD:
        try:
            tasks |= manager.load([harness_tasks(folder, (column,))])["tasks"]
        except InputError as error:
            reasons[column.name] = str(error)
        except (OSError, ValueError) as error:  # what `datasets` raises without the hub
            reasons[column.name] = (
                f"its questions cannot be had from the Hugging Face hub ({' '.join(str(error).split())}): name a "
                "folder with them in config.eval.leaderboard"
            )
    return Harness(manager, tasks, reasons)


def measure_leaderboard(subject: Subject, harness: Harness, path: Path) -> dict[str, dict]:
    """Scores of the leaderboard's tasks.

    Args:
        subject: what is measured.
        harness: see `load_harness`.
        path: where finished tasks are kept.

    Returns:
        See `leaderboard_scores`, with the 95% `interval` of each score and the `seconds` of all.
    """
    import lm_eval

    from rope_jax.evaluation.harness import HarnessModel

    fields = subject.config.eval
    lm = HarnessModel(
        subject.params,
        subject.model,
        subject.rope,
        subject.tokenizer,
        batch_size=fields.batch,
        max_length=max(subject.lengths),
        chunk=subject.config.train.loss_chunk,
        batch_sharding=batch_sharding(subject.mesh),
        cache_sharding=cache_sharding(subject.mesh),
        progress=bar("leaderboard"),
    )

    def measure(task) -> dict:
        found = lm_eval.simple_evaluate(
            lm, tasks=[task], task_manager=harness.manager, limit=fields.leaderboard_limit or None, log_samples=False
        )
        return {key: value for key, value in next(iter(found["results"].values())).items() if key != "alias"}

    of = {"config.eval.leaderboard": fields.leaderboard}
    records = stages(path, of, {name: partial(measure, task) for name, task in harness.tasks.items()})
    scores = leaderboard_scores(records)
    for score in scores.values():
        half = 1.96 * score["standard_error"]
        score["interval"] = [max(0.0, score["score"] - half), min(100.0, score["score"] + half)]
    return {"scores": scores, "seconds": sum(record["seconds"] for record in records.values())}


def _row_nll(score: Callable[[np.ndarray, np.ndarray], np.ndarray], mesh: Mesh) -> TokenNll:
    """NLL of one row at a time, as LongPPL takes it; rows are padded to few lengths."""
    rows = math.prod(mesh.shape[axis] for axis in ("data", "fsdp"))

    def nll(tokens: np.ndarray) -> np.ndarray:
        # Every device needs a row; the others are empty.
        padded = np.zeros((rows, bucket_length(len(tokens))), np.int32)
        padded[0, : len(tokens)] = tokens
        wanted = np.zeros(padded.shape, bool)
        wanted[0, : len(tokens) - 1] = True
        return np.asarray(score(padded, wanted))[0, : len(tokens) - 1]

    return nll
