"""An evaluation before it starts: model, scale vectors, texts and samples, with every check that needs no weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import settings, workdir
from experiments.leaderboard import Harness, load_harness
from experiments.longppl import check_longppl
from experiments.measured import check_perplexity
from experiments.prepared import NotRun, Prepared, prepare_samples
from experiments.progress import say
from experiments.suites import SUITES, Bench
from experiments.texts import evaluation_texts
from rope_jax.data.corpus import open_corpus
from rope_jax.data.tokenizer import Tokenizer, load_tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.nll import make_token_nll
from rope_jax.evaluation.suite import EvaluationTexts
from rope_jax.files import read_json_object, read_record, write_json
from rope_jax.interop.hf_config import SourceConfig
from rope_jax.interop.hub import resolve_model
from rope_jax.interop.huggingface import check_model
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector
from rope_jax.sharding import check_batch, make_mesh, param_shardings, row_sharding

MEASURED = ("perplexity", "longppl", "leaderboard")
# Fields that name files: what was made from one keeps its name, and is never mixed with what is made from another.
PATHS = (
    *("data.name", "data.path", "eval.longbench", "eval.essays", "eval.squad", "eval.hotpotqa", "eval.babilong"),
    *("eval.books", "eval.many_shot", "eval.leaderboard", "eval.longppl_evaluator"),
)

# Fields that change a result by rounding at most, such as the batch that fits into memory.
LAYOUT = ("eval.batch", "eval.generate_batch", "train.loss_chunk", "model.attention_chunk")


@dataclasses.dataclass(frozen=True)
class Job:
    """An evaluation after every check that needs no weights.

    Attributes:
        config: its config.
        folder: where everything is written.
        source: folder of the model.
        model: its shape, and how it is computed here.
        vectors: method to scale vector.
        tokenizer: the model's.
        mesh: devices.
        original: pre-training context, tokens.
        lengths: tokens of windows and prompts.
        texts: of the suites that measure on texts; None without.
        samples: what the other suites ask.
        harness: the leaderboard's tasks; None without.
        evaluator: folder of LongPPL's evaluator; None without.
        measured: suites of `MEASURED` that can be run.
        not_run: what cannot be run, and why.
        token_nll: of `make_token_nll`.
    """

    config: ConfigDict
    folder: Path
    source: Path
    model: LlamaConfig
    vectors: dict[str, ScaleVector]
    tokenizer: Tokenizer
    mesh: Mesh
    original: int
    lengths: tuple[int, ...]
    texts: EvaluationTexts | None
    samples: dict[str, list[Prepared]]
    harness: Harness | None
    evaluator: Path | None
    measured: tuple[str, ...]
    not_run: list[NotRun]
    token_nll: Callable[..., np.ndarray]


def prepare(config: ConfigDict, folder: Path) -> Job:
    """Checks everything that can be checked before the model is read, and makes the samples.

    Args:
        config: the evaluation's config.
        folder: where everything is written.

    Returns:
        The job.

    Raises:
        InputError: naming the field or file, and the fix.
    """
    if jax.process_count() > 1:
        raise InputError("experiments.evaluate runs in one process: start it on one host, with all of its devices")
    suites = wanted_suites(config)
    source = model_folder(config.model.path)
    found = check_model(source)
    tokenizer = load_tokenizer(config.data.tokenizer or source)
    model = settings.computed(config, found.config)
    if tokenizer.vocab_size > model.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size} ids and the model in {source} only {model.vocab_size}: name its "
            "own in config.data.tokenizer"
        )
    vectors, original, target = scale_vectors(config, source, found)
    lengths = tuple(sorted(set(config.eval.lengths or (original, target))))
    mesh = make_mesh(**config.mesh)
    param_shardings(model, mesh)
    check_batch(mesh, config.eval.batch, "config.eval.batch", "rows")
    check_batch(mesh, config.eval.generate_batch, "config.eval.generate_batch", "rows")
    for field in ("samples", "stride", "passkey_trials", "passkey_depths", "passkey_new_tokens"):
        if config.eval[field] < 1:
            raise InputError(f"config.eval.{field} is {config.eval[field]}: it must be at least 1")
    if lengths[0] < 2:
        raise InputError(f"config.eval.lengths is {lengths}: give numbers of tokens, at least 2")
    workdir.check(folder, config, (*workdir.MAY_CHANGE, "suite", *PATHS, *LAYOUT))
    files = model_files(source)
    if (read_record(folder / "model.json") or files) != files:
        raise InputError(
            f"the model in {source} is not the one that {folder} was begun with (its model.json): choose another "
            "--workdir, or delete that folder to start over"
        )

    def claim() -> None:
        workdir.claim(folder, config)
        write_json(folder / "model.json", files)

    not_run: list[NotRun] = []
    runnable = []

    def attempt(suite: str, check: Callable):
        if suite not in suites:
            return None
        try:
            value = check()
        except InputError as error:
            not_run.append(NotRun(suite, "", 0, str(error)))
            return None
        runnable.append(suite)
        return value

    texts = None
    if {"perplexity", "longppl"} & set(suites):
        try:
            texts = open_texts(config, folder, tokenizer)
        except InputError as error:
            not_run += [NotRun(suite, "", 0, str(error)) for suite in ("perplexity", "longppl") if suite in suites]
    evaluator = None
    if texts is not None:
        attempt("perplexity", lambda: check_perplexity(config, lengths, tokenizer, texts))
        evaluator = attempt("longppl", lambda: check_longppl(config))
    harness = attempt("leaderboard", lambda: load_harness(config))
    if harness is not None:
        not_run += [NotRun("leaderboard", task, 0, reason) for task, reason in harness.reasons.items()]
        if not harness.tasks:
            runnable.remove("leaderboard")

    bench = Bench(config.eval, tokenizer, lengths, config.seed)
    samples = {}
    for name in suites:
        if name in SUITES:
            parts, missing = prepare_samples(name, SUITES[name], bench, folder / "samples" / name, claim)
            not_run += missing
            if parts:
                samples[name] = parts
    if not (runnable or samples):
        reasons = "\n".join(f"  {missing.what}: {missing.reason}" for missing in not_run)
        raise InputError(f"none of config.suite can be run:\n{reasons}")
    claim()
    return Job(
        config=config,
        folder=folder,
        source=source,
        model=model,
        vectors=vectors,
        tokenizer=tokenizer,
        mesh=mesh,
        original=original,
        lengths=lengths,
        texts=texts,
        samples=samples,
        harness=harness,
        evaluator=evaluator,
        measured=tuple(runnable),
        not_run=not_run,
        token_nll=make_token_nll(model, config.train.loss_chunk, row_sharding(mesh)),
    )


def wanted_suites(config: ConfigDict) -> tuple[str, ...]:
    """The names in `config.suite`; InputError for one that there is not."""
    names = tuple(dict.fromkeys(name.strip() for name in config.suite.split(",") if name.strip()))
    known = (*MEASURED, *SUITES)
    for name in names:
        if name not in known:
            raise InputError(f"config.suite has {name!r}: name some of {', '.join(known)}, separated by commas")
    if not names:
        raise InputError(f"config.suite is empty: name some of {', '.join(known)}, separated by commas")
    return names


def model_folder(path: str) -> Path:
    """The folder of a model, or of what a run of experiments.extend has exported.

    Args:
        path: `config.model.path`.

    Returns:
        The folder.

    Raises:
        InputError: if there is none, or the run has not exported yet.
    """
    if not path:
        raise InputError("config.model.path is empty: name a Hugging Face folder, a hub id or a run of extend")
    run = Path(path).expanduser()
    if not (run / "methods").is_dir():
        return resolve_model(path)
    if not (run / "export").is_dir():
        raise InputError(f"config.model.path: the run in {run} has not exported a model yet; run its command again")
    say(f"{run} is a run: its export is evaluated")
    return run / "export"


def model_files(folder: Path) -> dict[str, list[int]]:
    """Size and time of the files that make a model, by which one that was trained anew is told apart."""
    paths = sorted(path for pattern in ("config.json", "*.safetensors", "*.bin") for path in folder.glob(pattern))
    return {path.name: [path.stat().st_size, int(path.stat().st_mtime)] for path in paths}


def scale_vectors(config: ConfigDict, source: Path, found: SourceConfig) -> tuple[dict[str, ScaleVector], int, int]:
    """The scale vector of each method, the original and the target context.

    Args:
        config: the evaluation's config.
        source: folder of the model.
        found: what its config says.

    Returns:
        Method to vector; tokens; tokens.

    Raises:
        InputError: naming the field that is wrong.
    """
    methods = settings.methods(config)
    solved = tuple(method for method in methods if method != settings.OWN)
    if settings.LEARNED in solved:
        raise InputError(
            "method 'learned' takes texts: run experiments.extend, and name its folder in config.model.path"
        )
    # What is not extended has a context of its own, and one that it was trained with before.
    original = config.context.original or trained_context(source, found)
    vectors, target = {settings.OWN: found.rope}, config.context.target or found.config.context
    if solved:
        extension = settings.model_extension(config, found.config, found.rope, solved)
        target = extension.measure.target
        vectors |= {method: extension.solve(method).scale for method in solved}
    return {method: vectors[method] for method in methods}, original, target


def trained_context(folder: Path, found: SourceConfig) -> int:
    """Tokens that a model was pre-trained on, as far as its config tells."""
    raw = read_json_object(folder / "config.json")
    blocks = [raw, *(raw.get(key) or {} for key in ("rope_scaling", "rope_parameters"))]
    named = [(found.provenance or {}).get("original_context")]
    named += [block.get("original_max_position_embeddings") for block in blocks]
    return next((int(length) for length in named if length), found.config.context)


def open_texts(config: ConfigDict, folder: Path, tokenizer: Tokenizer) -> EvaluationTexts:
    """The texts of the suites that measure on texts; InputError if there are none."""
    if config.data.name != "python_stdlib" and not config.data.path:
        raise InputError("config.data.path is empty: name the folder of texts (.txt, .jsonl) to measure on")
    splits = open_corpus(config.data.name, config.data.path, folder / "data")
    return evaluation_texts(config.eval, splits[config.eval.split], tokenizer)
