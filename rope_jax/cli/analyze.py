"""From a config to the disturbance of every method, and to a model's use of its pairs."""

import contextlib
from pathlib import Path

from ml_collections import ConfigDict

from rope_jax.cli import build, shell
from rope_jax.cli.methods import distances, energy, solved_method
from rope_jax.cli.names import config_names, reading, renamed
from rope_jax.commands import analyze as procedure
from rope_jax.commands.analyze import Analysis
from rope_jax.commands.reporter import Reporter
from rope_jax.commands.run import Corpus
from rope_jax.commands.usage import UsageJob, measure
from rope_jax.errors import InputError
from rope_jax.interop.hub import resolve_model
from rope_jax.interop.model_folder import read_source
from rope_jax.model.usage_file import Usage
from rope_jax.rope.embedding import identity
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.methods import METHODS
from rope_jax.rope.methods.registered import REGISTERED
from rope_jax.runs.folder import RunFolder
from rope_jax.sharding import make_mesh


def command(
    config: ConfigDict, folder: Path, name: str, *, named: bool = False, sweep: bool = False, usage: bool = False
) -> None:
    """Runs the command with its flags; `named` says that `model.path` was typed."""
    if usage:
        measure_usage(config, folder)
    else:
        analyze(config, folder, name, named=named, sweep=sweep)


def analyze(
    config: ConfigDict,
    folder: Path,
    name: str,
    *,
    named: bool = False,
    sweep: bool = False,
    reporter: Reporter | None = None,
) -> dict:
    """Solves and measures every method; gives what `analysis.json` holds.

    Args:
        config: the run's config; needs `rope.base`, `rope.head_dim` and `context.original`, or `model.path`.
        named: `model.path` is what to analyze. Otherwise a config that has the three needs no model.
        sweep: also sweep settings, into `sweep.json`.
    """
    reporter = reporter or shell.Terminal()
    with config_names():
        build.check(config)
        found = analysis(config, name, named)
        with RunFolder(folder).locked():
            result = procedure.analyze(found, folder, reporter)
            if sweep:
                procedure.sweep(found, folder, reporter)
    return result


def analysis(config: ConfigDict, name: str, named: bool = False) -> Analysis:
    """The analysis of every method whose parameters are given, for a model or for a geometry alone."""
    rope = config.rope
    if rope.base and rope.head_dim and config.context.original and not named:
        shape, contexts = Geometry(rope.base, rope.head_dim, identity(rope.head_dim)), build.measure(config, 0)
    elif config.model.path:
        with reading("model.path"):
            known = read_source(resolve_model(config.model.path, config.model.revision))
        build.check_geometry(config, known)
        shape, contexts = build.geometry(known), build.measure(config, known.config.context)
    else:
        raise InputError(
            "`rope.base`, `rope.head_dim` and `context.original` are not all set, and `model.path` is empty: name a "
            "model, set the three, or take a config that does, such as --config=configs/llama2_8k.py",
            field="model.path",
        )
    given = {"explicit": bool(rope.factors), "abf": rope.new_base > 0}
    chosen = {name: solved_method(config, name) for name in (*METHODS, *REGISTERED) if given.get(name, True)}
    build.check_methods(chosen, shape, contexts)
    return Analysis(name, build.settings(config), shape, contexts, chosen, energy(config), distances(config))


def measure_usage(config: ConfigDict, folder: Path, reporter: Reporter | None = None) -> Usage:
    """Measures how much the model that a config names uses its frequency pairs and distances, into `usage.json`."""
    names = {"texts": "config.usage.texts", "tokens": "config.usage.tokens"}
    with config_names(), renamed(names), contextlib.ExitStack() as held:
        build.check(config)
        if not config.model.path:
            raise InputError("`model.path` is empty: name the model to measure")
        held.enter_context(RunFolder(folder).locked())
        source = build.source(config, folder)
        tokenizer, splits = build.tokenizer(config, source), build.corpus(config, folder)
        with reading("eval.split"):
            documents = splits[config.eval.split]
        job = UsageJob(
            source,
            tokenizer,
            documents,
            Corpus(config.data.name, config.data.path, config.eval.split),
            make_mesh(**config.mesh),
            config.usage.texts,
            config.usage.tokens or config.context.original or source.known.config.context,
        )
        return measure(job, folder, reporter or shell.Terminal())
