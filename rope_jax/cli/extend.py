"""From a config to an extension, or the plan of one."""

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from rope_jax import multihost
from rope_jax.cli import benchmarks, build, names, shell, typed
from rope_jax.commands import extend as procedure
from rope_jax.commands.fields import DEFAULTS, LEARNED
from rope_jax.commands.plan import plan_training, virtual_devices
from rope_jax.commands.reporter import Reporter
from rope_jax.commands.run import Recipe, Run, count
from rope_jax.data.source import TextSource
from rope_jax.data.tokenizer import Tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation import engine
from rope_jax.evaluation.engine import Evaluation, Home
from rope_jax.files import write_json
from rope_jax.model.llama import abstract_params
from rope_jax.plan.plan import Plan
from rope_jax.runs.disk import check_disk, needed_bytes
from rope_jax.runs.folder import RunFolder
from rope_jax.runs.software import compilation_cache
from rope_jax.sharding import AXES, check_batch, make_mesh
from rope_jax.training.config import TrainConfig
from rope_jax.training.context import check_attention
from rope_jax.training.update import Training


def command(
    config: ConfigDict,
    folder: Path,
    name: str,
    *,
    dry_run: bool = False,
    plan: bool = False,
    mesh: str = "",
    profile: str = "",
) -> None:
    """Runs the command with its flags."""
    if mesh and not plan:
        raise InputError("--mesh goes with --plan; a run takes its devices from config.mesh")
    if plan:
        sizes = mesh_sizes(mesh, dict(config.mesh))
        virtual_devices(math.prod(sizes.values()))
        plan_on(config, name, sizes, shell.Terminal())
    elif dry_run:
        rehearse(config, folder, name)
    else:
        extend(config, folder, name, profile=steps_to_trace(profile))


def extend(
    config: ConfigDict,
    folder: Path,
    name: str,
    profile: tuple[int, int] | None = None,
    reporter: Reporter | None = None,
) -> dict:
    """Extends a model as a config says; gives what `results.json` holds.

    `profile` is the first and last step of each training to trace. Raises `NonFiniteLoss`, naming the step.
    """
    reporter = reporter or shell.Terminal()
    compilation_cache(folder, config.compilation_cache)
    with names.config_names(), contextlib.ExitStack() as held:
        run = multihost.in_turn(lambda: prepare(config, folder, name, reporter, held))
        return procedure.extend(dataclasses.replace(run, profile=profile), reporter)


def pretrain(config: ConfigDict, folder: Path, name: str, reporter: Reporter | None = None) -> Path:
    """Trains the small model that `extend` begins with where `config.model.path` is empty; gives its folder."""
    reporter = reporter or shell.Terminal()
    with names.config_names(), contextlib.ExitStack() as held:
        run = multihost.in_turn(lambda: prepare(config, folder, name, reporter, held))
        if run.pretraining and not run.folder.has("model"):
            procedure.pretrain(run, reporter)
        return run.recipe.source.folder


def rehearse(config: ConfigDict, folder: Path, name: str, reporter: Reporter | None = None) -> None:
    """Checks a run and reports its stages with their minutes; `folder` stays as it is."""
    reporter = reporter or shell.Terminal()
    with names.config_names(), contextlib.ExitStack() as held:
        scratch = Path(held.enter_context(tempfile.TemporaryDirectory()))
        run = multihost.in_turn(lambda: prepare(config, folder, name, reporter, held, scratch=scratch))
        procedure.rehearse(run, reporter)


def prepare(
    config: ConfigDict,
    folder: Path,
    name: str,
    reporter: Reporter,
    held: contextlib.ExitStack,
    *,
    scratch: Path | None = None,
) -> Run:
    """Checks everything that can be checked before the first long computation, and claims the folder.

    Until `held` closes, no other command works in the folder. With `scratch`, which takes prepared texts, the folder is
    neither claimed nor written to.
    """
    build.check(config)
    source = build.source(config, folder)
    tokenizer = build.tokenizer(config, source)
    recipe = build.recipe(config, source)
    procedure.check_exportable(recipe)
    mesh, pretraining = make_mesh(**config.mesh), None if source.path else build.pretraining(config)
    check_devices(config, recipe, pretraining, mesh)
    place = RunFolder(folder)
    if not scratch:
        held.enter_context(place.locked())
    if not scratch or folder.exists():
        place.check(build.settings(config), defaults=DEFAULTS)
    trained = Training(source.model, recipe.tuning[recipe.exported], mesh).abstract_state(source.own).params
    parameters, keep = count(abstract_params(source.model)), config.train.keep + config.train.keep_best
    check_disk(place, needed_bytes(place, parameters, count(trained), tuple(recipe.methods), keep))

    splits = build.corpus(config, scratch or folder)
    with names.reading("data.name" if config.data.name == "python_stdlib" else "data.path"):
        place.check_texts(splits.digest)
    evaluation = prepare_evaluation(config, recipe, tokenizer, mesh, splits=splits, reporter=reporter)
    if not scratch:
        place.claim(build.settings(config), splits.digest)
        if source.commit and multihost.is_first():
            write_json(place / "source.json", {"path": source.path, "commit": source.commit})
    return Run(
        name=name,
        command=typed.command("extend", config, folder),
        settings=build.settings(config),
        folder=place,
        recipe=recipe,
        pretraining=pretraining,
        tokenizer=tokenizer,
        documents=splits["train"],
        streams=config.data.streams,
        seed=config.seed,
        evaluation=evaluation,
        mesh=mesh,
        next_commands=typed.next_commands(folder),
    )


def prepare_evaluation(
    config: ConfigDict,
    recipe: Recipe,
    tokenizer: Tokenizer,
    mesh: Mesh,
    *,
    splits: Mapping[str, TextSource],
    reporter: Reporter,
) -> Evaluation:
    """Perplexity and retrieval at both contexts, as they are measured before and after fine-tuning."""
    contexts = recipe.measure.original, recipe.measure.target
    with names.reading("eval.split"):
        documents = splits[config.eval.split]
    texts = benchmarks.texts(config).tokenize(documents, tokenizer)
    setting = benchmarks.setting(
        config,
        recipe.source.model,
        tokenizer,
        mesh,
        original=contexts[0],
        lengths=contexts,
        open_texts=lambda: texts,
        generate_batch=config.eval.passkey_batch,
        progress=reporter.bar,
    )
    wanted = {"perplexity": benchmarks.benchmark(config, "perplexity", conventions=("token",))}
    if config.eval.passkey_trials:
        wanted["passkey"] = benchmarks.benchmark(config, "passkey")
    if tokenizer.symbols and config.eval.recall_texts:
        wanted["recall"] = benchmarks.benchmark(config, "recall")
    own = {name: benchmarks.names(name) for name in wanted}
    own["perplexity"]["lengths"] = "config.context.target"
    evaluation = engine.prepare(wanted, setting, Home(names=own))
    if evaluation.not_run:
        raise evaluation.not_run[0].error
    return evaluation


def check_devices(config: ConfigDict, recipe: Recipe, pretraining: TrainConfig | None, mesh: Mesh) -> None:
    """Checks that every stage fits the devices."""
    model = recipe.source.model
    check_attention(model, mesh)
    with build.train_section(config):
        Training(model, recipe.tuning[recipe.exported], mesh).check()
    if pretraining:
        with names.section("pretrain", length="config.context.original"):
            Training(model, pretraining, mesh).check()
    check_batch(mesh, config.eval.batch, "eval.batch", "rows")
    check_batch(mesh, config.eval.passkey_batch, "eval.passkey_batch", "rows")
    if LEARNED in recipe.methods:
        check_batch(mesh, config.learn.batch, "learn.batch")
    streams, learned = config.data.streams, config.learn.batch if LEARNED in recipe.methods else 0
    for rows in (recipe.tuning[recipe.exported].rows, pretraining.rows if pretraining else 0, learned):
        if rows % streams:
            raise InputError(
                f"`data.streams` is {streams}, which does not divide the {rows} rows of a batch: use a divisor"
            )


def plan_on(config: ConfigDict, name: str, sizes: dict[str, int], reporter: Reporter) -> Plan:
    """Plans the fine-tuning of a run on devices, by mesh axis, that need not be here."""
    with names.config_names(), build.train_section(config):
        build.check(config)
        source = build.plan_source(config)
        tuning = build.recipe(config, source).tuning[config.rope.method]
        return plan_training(name, source.model, tuning, sizes, own=source.own, reporter=reporter)


def mesh_sizes(flag: str, default: Mapping[str, int]) -> dict[str, int]:
    """Axis to size, by a flag such as 'data=2,fsdp=4' with 1 for other axes, or by the default with 1 for -1."""
    if not flag:
        return {axis: max(size, 1) for axis, size in default.items()}
    sizes: dict[str, int] = dict.fromkeys(AXES, 1)
    for part in flag.split(","):
        axis, _, size = part.partition("=")
        if axis not in AXES or not size.isdecimal() or int(size) < 1:
            raise InputError(
                f"--mesh={flag}: {part!r} is not the size of an axis; write some of {', '.join(AXES)} as fsdp=8"
            )
        sizes[axis] = int(size)
    return sizes


def steps_to_trace(flag: str) -> tuple[int, int] | None:
    """First and last step of `--profile`, None if it is empty."""
    if not flag:
        return None
    first, _, last = flag.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise InputError(f"--profile={flag} must name a first and a last step, such as 10:12")
    return int(first), int(last)
