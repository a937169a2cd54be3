"""From a config to an evaluation."""

import tempfile
from pathlib import Path

from ml_collections import ConfigDict

from rope_jax.cli import benchmarks, build, shell, typed
from rope_jax.cli.methods import solved_method
from rope_jax.cli.names import config_names, reading
from rope_jax.commands import evaluate as procedure
from rope_jax.commands.fields import DEFAULTS, LEARNED, OWN
from rope_jax.commands.reporter import Reporter
from rope_jax.commands.source import Source
from rope_jax.errors import InputError
from rope_jax.evaluation.benchmarks import BENCHMARKS
from rope_jax.interop.huggingface import check_model
from rope_jax.rope.embedding import ScaleVector
from rope_jax.runs.disk import check_disk
from rope_jax.runs.folder import MAY_CHANGE, RunFolder
from rope_jax.sharding import make_mesh

# Fields that name files: what was made from one keeps its name, and is never mixed with what is made from another.
PATHS = (
    *("data.name", "data.path", "eval.longbench", "eval.essays", "eval.squad", "eval.hotpotqa", "eval.babilong"),
    *("eval.books", "eval.many_shot", "eval.leaderboard", "eval.longppl_evaluator"),
)
# Fields that change a result by rounding at most, such as the batch that fits into memory.
LAYOUT = ("eval.batch", "eval.generate_batch", "train.loss_chunk", "model.attention_chunk")


def command(config: ConfigDict, folder: Path, name: str, *, dry_run: bool = False, score: str = "") -> None:
    """Runs the command with its flags."""
    if score:
        score_predictions(score, folder)
    elif dry_run:
        rehearse(config, folder, name)
    else:
        evaluate(config, folder, name)


def evaluate(config: ConfigDict, folder: Path, name: str, reporter: Reporter | None = None) -> dict:
    """Evaluates the model that a config names, writes everything to `folder`, and gives what `results.json` holds."""
    reporter = reporter or shell.Terminal()
    with config_names():
        wanted, place = job(config, folder, name, reporter), RunFolder(folder)
        with place.locked():
            return procedure.evaluate(wanted, place, reporter)


def rehearse(config: ConfigDict, folder: Path, name: str, reporter: Reporter | None = None) -> None:
    """Checks an evaluation and reports its stages with their minutes; `folder` stays as it is."""
    reporter = reporter or shell.Terminal()
    with config_names(), tempfile.TemporaryDirectory() as scratch:
        wanted, place = job(config, Path(scratch), name, reporter), RunFolder(folder)
        check_disk(place, 0)
        if folder.exists():
            place.check(wanted.config, wanted.may_change, DEFAULTS)
        procedure.rehearse(wanted, RunFolder(Path(scratch)), reporter)


def job(config: ConfigDict, folder: Path, name: str, reporter: Reporter) -> procedure.EvaluationJob:
    """The evaluation that a config asks for, to be kept in `folder`."""
    build.check(config, OWN)
    wanted = wanted_benchmarks(config)
    with reading("model.path"):
        place = procedure.model_folder(config.model.path, config.model.revision, reporter)
        found = check_model(place)
    source = Source(config.model.path, place, found, build.compute(config).of(found.config))
    tokenizer = build.tokenizer(config, source)
    vectors, original, target = scale_vectors(config, source)
    mesh = make_mesh(**config.mesh)
    texts = benchmarks.texts(config)
    setting = benchmarks.setting(
        config,
        source.model,
        tokenizer,
        mesh,
        original=original,
        lengths=tuple(sorted(set(config.eval.lengths or (original, target)))),
        open_texts=lambda: texts.open(folder / "data", tokenizer),
        generate_batch=config.eval.generate_batch,
        progress=reporter.bar,
    )
    return procedure.EvaluationJob(
        name=name,
        command=typed.command("evaluate", config, folder),
        path=config.model.path,
        source=place,
        vectors=vectors,
        setting=setting,
        benchmarks={name: benchmarks.benchmark(config, name) for name in wanted},
        names={name: benchmarks.names(name) for name in wanted},
        config=build.settings(config),
        may_change=(*MAY_CHANGE, "suite", "eval.reference", *PATHS, *LAYOUT),
        reference=config.eval.reference,
    )


def wanted_benchmarks(config: ConfigDict) -> tuple[str, ...]:
    """The names in `config.suite`; InputError for one that is unknown."""
    names = tuple(dict.fromkeys(name.strip() for name in config.suite.split(",") if name.strip()))
    known = f"name some of {', '.join(BENCHMARKS)}, separated by commas"
    for name in names:
        if name not in BENCHMARKS:
            raise InputError(f"`suite` has {name!r}: {known}")
    if not names:
        raise InputError(f"`suite` is empty: {known}")
    return names


def scale_vectors(config: ConfigDict, source: Source) -> tuple[dict[str, ScaleVector], int, int]:
    """The scale vector of each method, the original and the target context in tokens."""
    known = source.known
    learned = {LEARNED: "it takes texts: run experiments.extend, and name its folder in config.model.path"}
    names = build.method_names(config, learned)
    methods = {name: solved_method(config, name) for name in names if name != OWN}
    # A model that is not extended has a context of its own, and one that it was trained with before.
    original = config.context.original or procedure.trained_context(source.folder, known)
    target = config.context.target or known.config.context
    vectors = {OWN: known.rope}
    if methods:
        geometry, measure = build.geometry(known), build.measure(config, known.config.context)
        build.check_methods(methods, geometry, measure)
        target = measure.target
        vectors |= {name: method(geometry, measure).scale for name, method in methods.items()}
    return {name: vectors[name] for name in names}, original, target


def score_predictions(predictions: str, folder: Path) -> None:
    """Scores a folder of LongBench-E's prediction files, without a model."""
    procedure.score_predictions(Path(predictions).expanduser(), folder, shell.Terminal())
