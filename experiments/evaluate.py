"""Evaluates a model on the paper's benchmarks and stronger ones, under one scale vector or several.

python -m experiments.evaluate --config.model.path=MODEL --config.suite=passkey,key_value
python -m experiments.evaluate --config.model.path=runs/tiny --config.suite=perplexity --config.data.path=TEXTS
python -m experiments.evaluate --score DIR --workdir OUT      # LongBench-E's prediction files, without a model

MODEL is a Hugging Face folder or hub id, or the folder of a run of experiments.extend. Every prediction is kept as it
is made: interrupted anywhere, the same command goes on, and later ones may add suites and methods. The workdir then
holds `report.md`, `results.json` with every number, and `predictions/`.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

# On a shared CPU the libraries below greet on standard error; a user's first screen should be ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from absl import flags
from ml_collections import ConfigDict

from experiments import benchmarks, cli, progress, settings
from rope_jax.commands import evaluate as command
from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.benchmarks import BENCHMARKS
from rope_jax.interop.hf_config import SourceConfig
from rope_jax.interop.huggingface import check_model
from rope_jax.rope.embedding import ScaleVector
from rope_jax.runs.folder import MAY_CHANGE, RunFolder
from rope_jax.sharding import check_batch

T = TypeVar("T")
DEFAULT = Path(__file__).resolve().parents[1] / "configs" / "eval.py"
SCORE = flags.DEFINE_string("score", "", "Folder of LongBench-E prediction files to score; no model is read.")

# Fields that name files: what was made from one keeps its name, and is never mixed with what is made from another.
PATHS = (
    *("data.name", "data.path", "eval.longbench", "eval.essays", "eval.squad", "eval.hotpotqa", "eval.babilong"),
    *("eval.books", "eval.many_shot", "eval.leaderboard", "eval.longppl_evaluator"),
)
# Fields that change a result by rounding at most, such as the batch that fits into memory.
LAYOUT = ("eval.batch", "eval.generate_batch", "train.loss_chunk", "model.attention_chunk")


def evaluate(config: ConfigDict, folder: Path, name: str) -> dict:
    """Evaluates the model that a config names; returns what `results.json` holds."""
    names = {field: f"config.{field}" for field in benchmarks.dotted(config)} | {"folder": "--workdir"}
    return _renamed(names, lambda: command.evaluate(job(config, folder, name), RunFolder(folder), progress))


def job(config: ConfigDict, folder: Path, name: str = "eval") -> command.EvaluationJob:
    """The evaluation that a config asks for.

    Args:
        config: the evaluation's config.
        folder: where everything is written.
        name: of the config.

    Returns:
        The evaluation.

    Raises:
        InputError: naming the field or file, and the fix.
    """
    wanted = wanted_benchmarks(config)
    source = _renamed({"path": "config.model.path"}, lambda: command.model_folder(config.model.path, progress))
    found = check_model(source)
    tokenizer = _renamed({"path": "config.data.tokenizer"}, lambda: load_tokenizer(config.data.tokenizer or source))
    model = settings.computed(config, found.config)
    if tokenizer.vocab_size > model.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size} ids and the model in {source} only {model.vocab_size}: name its "
            "own in config.data.tokenizer"
        )
    vectors, original, target = scale_vectors(config, source, found)
    mesh = settings.mesh(config)
    for field in ("batch", "generate_batch"):
        with settings.renamed(config, "eval"):
            check_batch(mesh, config.eval[field], field, "rows")
    texts = benchmarks.texts(config)
    setting = benchmarks.setting(
        config,
        model,
        tokenizer,
        mesh,
        original=original,
        lengths=tuple(sorted(set(config.eval.lengths or (original, target)))),
        open_texts=lambda: texts.open(folder / "data", tokenizer),
        generate_batch=config.eval.generate_batch,
    )
    return command.EvaluationJob(
        name=name,
        command="python -m experiments.evaluate" + "".join(f" {shlex.quote(arg)}" for arg in sys.argv[1:]),
        path=config.model.path,
        source=source,
        vectors=vectors,
        setting=setting,
        benchmarks={name: benchmarks.benchmark(config, name) for name in wanted},
        names={name: benchmarks.names(name) for name in wanted},
        config=json.loads(config.to_json()),
        may_change=(*MAY_CHANGE, "suite", *PATHS, *LAYOUT),
    )


def wanted_benchmarks(config: ConfigDict) -> tuple[str, ...]:
    """The names in `config.suite`; InputError for one that is unknown."""
    names = tuple(dict.fromkeys(name.strip() for name in config.suite.split(",") if name.strip()))
    known = f"name some of {', '.join(BENCHMARKS)}, separated by commas"
    for name in names:
        if name not in BENCHMARKS:
            raise InputError(f"config.suite has {name!r}: {known}", field="config.suite")
    if not names:
        raise InputError(f"config.suite is empty: {known}", field="config.suite")
    return names


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
    original = config.context.original or command.trained_context(source, found)
    vectors, target = {settings.OWN: found.rope}, config.context.target or found.config.context
    if solved:
        extension = settings.model_extension(config, found.config, found.rope, solved)
        target = extension.measure.target
        vectors |= {method: extension.solve(method).scale for method in solved}
    return {method: vectors[method] for method in methods}, original, target


def run(config: ConfigDict, folder: Path, name: str) -> None:
    """The command: an evaluation, or with `--score` the scoring of prediction files."""
    if SCORE.value:
        command.score_predictions(Path(SCORE.value).expanduser(), folder, progress)
    else:
        evaluate(config, folder, name)


def _renamed(names: Mapping[str, str], action: Callable[[], T]) -> T:
    """Does something whose arguments the user knows by other names."""
    try:
        return action()
    except InputError as error:
        raise error.renamed(names) from None


if __name__ == "__main__":
    cli.run(run, DEFAULT)
