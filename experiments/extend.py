"""Extends a RoPE language model's context, measures what that did, and exports the result.

python -m experiments.extend                                   # a small model, from nothing, in minutes
python -m experiments.extend --config=configs/llama2_8k.py --config.data.path=/path/to/tfds_data
python -m experiments.extend --config=configs/local.py --config.model.path=MODEL --config.data.path=TEXTS
python -m experiments.extend --config=configs/llama2_16k.py --plan --mesh=fsdp=8    # what it takes, before it is run

The procedure: load (or pre-train) a model, solve for the scale vectors, measure each, fine-tune each, measure
again, export. Interrupted anywhere, the same command goes on from the last finished stage or checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

# On a shared CPU the libraries below greet on standard error; a user's first screen should be ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import flax.linen as nn
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import benchmarks, cli, names, settings, signals, workdir
from experiments.cards import run_card, run_provenance
from experiments.learned import learned_solution
from experiments.plan import plan_run, virtual_devices
from experiments.progress import byte_bar, first_step, say, training_bar
from experiments.reading import read_params
from rope_jax import multihost
from rope_jax.data.corpus import open_corpus
from rope_jax.data.pipeline import training_batches
from rope_jax.data.source import TextSource
from rope_jax.data.tokenizer import Tokenizer, load_tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation import engine
from rope_jax.evaluation.benchmark import Subject
from rope_jax.evaluation.engine import Evaluation, Home
from rope_jax.evaluation.record import stage_record
from rope_jax.files import read_record, write_json
from rope_jax.interop.huggingface import check_model, write_model
from rope_jax.interop.model_card import write_card
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import abstract_params, init_params
from rope_jax.plan.chips import GIB
from rope_jax.plan.memory import account, measured
from rope_jax.report.extension_page import extension_page
from rope_jax.report.metrics import MetricsWriter, read_metrics
from rope_jax.report.page import write_page
from rope_jax.rope.embedding import ScaleVector, identity
from rope_jax.sharding import check_batch, param_shardings, process_rows
from rope_jax.training.config import TrainConfig
from rope_jax.training.context import check_attention
from rope_jax.training.loop import Callbacks, Start, train
from rope_jax.training.profiling import Profile
from rope_jax.training.state import Variables
from rope_jax.training.update import Training

PLAN = flags.DEFINE_bool("plan", False, "Only say what memory, communication and hours fine-tuning takes.")
MESH = flags.DEFINE_string("mesh", "", "With --plan: devices to plan for, such as data=2,fsdp=4; default config.mesh.")
PROFILE = flags.DEFINE_string("profile", "", "Trace these steps of every training, such as 10:12, into its profile/.")

TINY = Path(__file__).resolve().parents[1] / "configs" / "tiny.py"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run after every check that needs no long computation.

    Attributes:
        config: the config's fields.
        folder: where everything is written.
        source: folder of the model to extend; to be pre-trained if it does not exist yet.
        source_dtype: dtype of that model's weights, and of the export.
        model: its shape, and how this run computes it.
        extension: what is extended, and how disturbance is measured.
        methods: methods to compare; the first is exported.
        tokenizer: the model's.
        documents: what is trained on.
        pretraining: the run that makes the model to extend; None if that is given.
        tuning: the fine-tuning run.
        evaluation: what is measured before and after.
        mesh: devices.
        profile: first and last step to trace, or None.
    """

    config: ConfigDict
    folder: Path
    source: Path
    source_dtype: str
    model: LlamaConfig
    extension: settings.Extension
    methods: tuple[str, ...]
    tokenizer: Tokenizer
    documents: TextSource
    pretraining: TrainConfig | None
    tuning: TrainConfig
    evaluation: Evaluation
    mesh: Mesh
    profile: tuple[int, int] | None = None


def extend(config: ConfigDict, folder: Path, name: str, profile: tuple[int, int] | None = None) -> dict:
    """The whole procedure.

    Args:
        config: the run's config.
        folder: where everything is written.
        name: of the run, for its page.
        profile: first and last step of each training to trace, or None.

    Returns:
        What `results.json` holds.

    Raises:
        InputError: naming the field or file that cannot be used, before any long computation.
        NonFiniteLoss: naming the step.
    """
    workdir.compilation_cache(folder, config.compilation_cache)
    run = dataclasses.replace(multihost.in_turn(lambda: prepare(config, folder)), profile=profile)
    say(
        f"{name}: {run.extension.measure.original:,} to {run.extension.measure.target:,} tokens by "
        f"{', '.join(run.methods)}; "
        f"everything goes to {folder}\n{layout(run)}"
    )
    if run.pretraining and not multihost.from_first(run.source.exists):
        pretrain(run)

    solved = solve(run)
    measured = evaluate_and_tune(run, solved)
    results = multihost.from_first(lambda: written(run, name, measured))
    say(f"page     {folder / 'report.md'}\nexport   {folder / 'export'}\nnumbers  {folder / 'results.json'}")
    return results


def written(run: Run, name: str, measured: dict[str, dict]) -> dict:
    """Writes numbers and page, and gives the numbers."""
    results = collect(run, name, measured)
    write_json(run.folder / "results.json", results)
    curves = {method: read_metrics(run.folder / "methods" / method / "metrics.jsonl") for method in run.methods}
    write_page(run.folder, extension_page(results, curves))
    return results


def prepare(config: ConfigDict, folder: Path) -> Run:
    """Checks everything that can be checked before the first long computation.

    Args:
        config: the run's config.
        folder: where everything is written.

    Returns:
        The run.

    Raises:
        InputError: naming the field or file, and the fix.
    """
    if config.model.path:
        source = settings.model_folder(config.model.path)
        found = check_model(source)
        with names.renamed({"path": "config.data.tokenizer"}):
            tokenizer = load_tokenizer(config.data.tokenizer or source)
        model, own, dtype = settings.computed(config, found.config), found.rope, found.config.param_dtype
        if tokenizer.vocab_size > model.vocab_size:
            raise InputError(
                f"config.data.tokenizer has {tokenizer.vocab_size} ids and the model in config.model.path only "
                f"{model.vocab_size}: use the tokenizer that the model was trained with"
            )
    else:
        source = folder / "model"
        with names.renamed({"path": "config.pretrain.tokenizer"}):
            tokenizer = load_tokenizer(config.pretrain.tokenizer)
        model = settings.pretrained_model(config, tokenizer)
        own, dtype = identity(model.head_dim), "float32"
    extension = settings.model_extension(config, model, own)
    methods = settings.methods(config)
    per_layer = ("explicit", settings.LEARNED) if config.learn.start == "explicit" else ("explicit",)
    if methods[0] in per_layer and np.ndim(extension.methods["explicit"].factors) == 2:
        raise InputError(
            "config.rope.factors holds a vector per layer, which no stock config.json can say, so that it cannot be "
            "exported: give one vector, or name the method in config.compare and export another"
        )
    tuning = settings.fine_tuning(config, extension.measure.target)

    mesh = settings.mesh(config)
    check_attention(model, mesh)
    training = Training(model, tuning, mesh)
    with settings.renamed(config, "train", length="config.context.target"):
        training.check()
    if settings.LEARNED in methods:
        with settings.renamed(config, "learn"):
            check_batch(mesh, config.learn.batch, "batch")
    for field in ("batch", "passkey_batch"):
        with settings.renamed(config, "eval"):
            check_batch(mesh, config.eval[field], field, "rows")
    pretraining = None
    if not config.model.path:
        pretraining = settings.pretraining(config)
        with settings.renamed(config, "pretrain", length="config.context.original"):
            Training(model, pretraining, mesh).check()

    workdir.check(folder, config)
    keep, trained = tuning.keep + tuning.keep_best, training.abstract_state(own).params
    workdir.check_disk(folder, workdir.needed_bytes(folder, parameters(model), leaves(trained), methods, keep))
    if config.data.name != "python_stdlib" and not config.data.path:
        raise InputError("config.data.path is empty: name the folder of texts to fine-tune and measure on")
    with names.renamed(benchmarks.names()):
        splits = open_corpus(config.data.name, config.data.path, folder / "data")
        documents = splits[config.eval.split]
    texts = benchmarks.texts(config).tokenize(documents, tokenizer)
    setting = benchmarks.setting(
        config,
        model,
        tokenizer,
        mesh,
        original=extension.measure.original,
        lengths=tuple(sorted({extension.measure.original, extension.measure.target})),
        open_texts=lambda: texts,
        generate_batch=config.eval.passkey_batch,
    )
    wanted = {"perplexity": benchmarks.benchmark(config, "perplexity", conventions=("token",))}
    if config.eval.passkey_trials:
        wanted["passkey"] = benchmarks.benchmark(config, "passkey")
    fields = {name: benchmarks.names(name) for name in wanted}
    fields["perplexity"]["lengths"] = "config.context.target"
    evaluation = engine.prepare(wanted, setting, Home(names=fields))
    if evaluation.not_run:
        raise evaluation.not_run[0].error
    if multihost.is_first():
        workdir.claim(folder, config)
    return Run(
        config=config,
        folder=folder,
        source=source,
        source_dtype=dtype,
        model=model,
        extension=extension,
        methods=methods,
        tokenizer=tokenizer,
        documents=splits["train"],
        pretraining=pretraining,
        tuning=tuning,
        evaluation=evaluation,
        mesh=mesh,
    )


def layout(run: Run) -> str:
    """The devices of a run and how they compute attention, in a line."""
    pieces = run.mesh.shape["context"]
    ring = f" in a ring of {pieces} pieces of every sequence" if pieces > 1 else ""
    return f"{run.mesh.size} x {jax.devices()[0].device_kind}; attention by '{run.model.attention}'{ring}"


def pretrain(run: Run) -> None:
    """Trains a small model from nothing and leaves it as a Hugging Face folder, like any other model to extend."""
    shardings = param_shardings(run.model, run.mesh)

    def fresh():
        initial = jax.jit(lambda key: nn.unbox(init_params(run.model, key)), out_shardings=shardings)
        return initial(jax.random.key(run.config.seed))

    say(f"pre-training a model of {parameters(run.model):,} parameters at {run.extension.measure.original} tokens")
    rope = identity(run.model.head_dim)
    params = fit(run, rope, run.pretraining, fresh, run.folder / "pretrain", "pre-training").params
    with byte_bar("writing the model") as progress:
        write_model(
            run.source,
            dataclasses.replace(run.model, context=run.extension.measure.original),
            params,
            rope,
            context=run.extension.measure.original,
            provenance={"trained_by": "rope-jax", "steps": run.pretraining.optimizer.steps},
            save_tokenizer=run.tokenizer.save,
            dtype="float32",
            progress=progress,
        )


def solve(run: Run) -> dict[str, ScaleVector]:
    """Finds every method's scale vector and writes it down with its disturbance."""
    vectors = {}
    say("disturbance x 1000, and interpolated dimensions")
    for method in run.methods:
        path = run.folder / "methods" / method / "scale.json"
        record = multihost.from_first(partial(read_record, path))
        if record is None:
            # What is solved in every process need not agree in the last bit.
            record = multihost.from_first(partial(recorded, path, solved(run, method)))
        vectors[method] = ScaleVector.create(record["factors"], record["attention_factor"])
        say(f"  {method:<16} {record['disturbance_e3']:8.2f} {record['interpolated_dimensions']:6d}")
    return vectors


def recorded(path: Path, record: dict) -> dict:
    """Writes a record down and gives it."""
    write_json(path, record)
    return record


def solved(run: Run, method: str) -> dict:
    """What `scale.json` holds of a method."""
    record = {}
    if method == settings.LEARNED:
        fields = run.config.learn
        solution, learned = learned_solution(
            read_params(run.source, run.model, run.mesh),
            run.model,
            run.extension,
            fields.start,
            settings.learning(run.config),
            run.documents,
            run.tokenizer,
            fields.batch,
            fields.steps,
            run.config.seed,
            run.config.data.streams,
            run.mesh,
        )
        record = {"losses": learned.losses.tolist(), "start": fields.start}
    else:
        solution = run.extension.solve(method)
    record |= {
        "factors": np.asarray(solution.scale.factors, float).tolist(),
        "attention_factor": float(solution.scale.attention_factor),
        "disturbance": np.asarray(solution.disturbance, float).tolist(),
        "disturbance_e3": 1e3 * float(np.mean(solution.disturbance)),
        "interpolated_dimensions": solution.interpolated_dimensions,
    }
    if solution.selection is not None:
        record["thresholds"] = np.asarray(solution.selection.thresholds, float).tolist()
        record["margin"] = np.asarray(solution.selection.margin, float).tolist()
    return record


def evaluate_and_tune(run: Run, vectors: dict[str, ScaleVector]) -> dict[str, dict]:
    """Measures each method as it is, fine-tunes it, measures again, and exports the first.

    Args:
        run: the run.
        vectors: method to scale vector.

    Returns:
        Method to its records `scale`, `before` and `after`.
    """
    folders = {method: run.folder / "methods" / method for method in run.methods}

    def done(method, stage):
        return multihost.from_first((folders[method] / f"{stage}.json").exists)

    def base():
        return read_params(run.source, run.model, run.mesh)

    say("measuring the model as it is, under each scale vector")
    waiting = [method for method in run.methods if not done(method, "before")]
    params = base() if waiting else None
    for method in waiting:
        measure(run, method, "before", params, vectors[method])
    del params

    say(f"fine-tuning at {run.extension.measure.target:,} tokens")
    for method in run.methods:
        exported = method != run.methods[0] or multihost.from_first((run.folder / "export").exists)
        if done(method, "after") and exported:
            continue
        tuning = settings.method_tuning(run.config, run.extension.measure.target, method)
        tuned = fit(run, vectors[method], tuning, base, folders[method], method)
        if not done(method, "after"):
            measure(run, method, "after", tuned.params, tuned.rope)
        if not exported:
            export(run, tuned.params, tuned.rope)
    return multihost.from_first(
        lambda: {
            method: {name: read_record(folder / f"{name}.json") for name in ("scale", "before", "after")}
            for method, folder in folders.items()
        }
    )


def fit(run: Run, rope: ScaleVector, training: TrainConfig, initial: Callable, folder: Path, what: str) -> Variables:
    """Trains with a progress bar and metrics on disk; goes on from the newest checkpoint in the folder.

    Args:
        run: the run.
        rope: scale vector to train under, or to begin with.
        training: length, batch and optimizer.
        initial: gives the parameters to start from.
        folder: for checkpoints and metrics.
        what: a description for the bar.

    Returns:
        The trained parameters and their scale vector.
    """
    rows = training.global_batch // training.accumulation
    streams, held = run.config.data.streams, process_rows(run.mesh, rows)
    with names.renamed({"streams": "config.data.streams"}):
        batches = training_batches(
            run.documents, run.tokenizer, rows, training.length, run.config.seed, rows=held, streams=streams
        )
    profile = Profile(folder / "profile", *run.profile) if run.profile else None
    steps, tokens = training.optimizer.steps, training.global_batch * training.length

    @contextlib.contextmanager
    def report(start):
        with contextlib.ExitStack() as stack:
            metrics = stack.enter_context(MetricsWriter(folder, start)) if multihost.is_first() else None
            show = stack.enter_context(training_bar(what, steps, start, tokens))
            last = time.monotonic()
            compiled = first_step(what) if start < steps else None

            def on_step(step, values):
                nonlocal last
                if step == start + 1:
                    compiled()
                    say_memory(run, rope, training)
                now = time.monotonic()
                if metrics:
                    metrics.write(step, {**values, "seconds": now - last})
                last = now
                show(step, values)

            yield on_step

    with signals.deferred() as should_stop:
        callbacks = Callbacks(report, should_stop, profile)
        setup = Training(run.model, training, run.mesh)
        return train(setup, Start(rope, initial), batches, folder / "checkpoints", callbacks)


def say_memory(run: Run, rope: ScaleVector, training: TrainConfig) -> None:
    """Says what a device has held at most, beside what `--plan` says, where devices count it."""
    peak = measured(run.mesh)
    if peak is not None:
        planned = account(Training(run.model, training, run.mesh), rope).peak
        say(f"  memory: {peak / GIB:.1f} GiB on a device so far; planned for a step {planned / GIB:.1f} GiB")


def measure(run: Run, method: str, stage: str, params: dict, rope: ScaleVector) -> None:
    """Measures one method, writes it down and says it."""
    started = time.monotonic()
    record = stage_record(run.evaluation, Subject(run.evaluation.setting, params, rope))
    record["seconds"] = time.monotonic() - started
    record["factors"] = np.asarray(rope.factors, float).tolist()
    if multihost.is_first():
        write_json(run.folder / "methods" / method / f"{stage}.json", record)
    windows = ", ".join(
        f"perplexity {result['perplexity']:.3f} at {window}" for window, result in record["perplexity"].items()
    )
    say(f"  {method:<16} {stage:<7} {windows}")


def export(run: Run, params: dict, rope: ScaleVector) -> None:
    """Writes the fine-tuned model of the first method in Hugging Face format, with its card."""
    method = run.methods[0]
    files = {stage: run.folder / "methods" / method / f"{stage}.json" for stage in ("before", "after")}
    measured = multihost.from_first(lambda: {stage: read_record(file) for stage, file in files.items()})
    lengths = run.extension.measure.original, run.extension.measure.target
    facts = run_card(run.config, method, rope, *lengths, run.tuning.optimizer.steps, **measured)
    source = run.source if run.config.model.path else None
    with byte_bar("writing the folder") as progress:
        write_model(
            run.folder / "export",
            run.model,
            params,
            rope,
            context=run.extension.measure.target,
            provenance=run_provenance(run.config, method, *lengths, run.tuning.optimizer.steps),
            extra_files=lambda place: write_card(place, facts, source),
            source=run.source,
            dtype=run.source_dtype,
            progress=progress,
        )


def collect(run: Run, name: str, methods: dict[str, dict]) -> dict:
    """Everything that was measured, with what is needed to repeat it."""
    seconds = {}
    pretraining = read_metrics(run.folder / "pretrain" / "metrics.jsonl")
    if pretraining:
        seconds["pre-training"] = sum(row["seconds"] for row in pretraining)
    for method, record in methods.items():
        rows = read_metrics(run.folder / "methods" / method / "metrics.jsonl")
        seconds[f"fine-tuning {method}"] = sum(row["seconds"] for row in rows)
        seconds[f"evaluating {method}"] = record["before"]["seconds"] + record["after"]["seconds"]
    data = run.config.data
    return {
        "name": name,
        "command": "python -m experiments.extend" + "".join(f" {shlex.quote(arg)}" for arg in sys.argv[1:]),
        "context": {"original": run.extension.measure.original, "target": run.extension.measure.target},
        "extension": {"intervals": run.extension.measure.intervals, "n_hat": run.config.solve.n_hat},
        "model": {
            "parameters": parameters(run.model),
            "description": f"{run.model.num_layers} layers, width {run.model.hidden_size}",
            "head_dim": run.model.head_dim,
            "source": run.config.model.path or "pre-trained in this run",
        },
        "data": {"description": data.name + (f", {data.path}" if data.path else ""), "split": run.config.eval.split},
        "train": {
            "steps": run.tuning.optimizer.steps,
            "tokens_per_step": run.tuning.global_batch * run.tuning.length,
        },
        "eval": {"stride": run.config.eval.stride},
        "methods": methods,
        "export": {"method": run.methods[0], "folder": "export"},
        "versions": workdir.versions(),
        "seconds": seconds,
        "config": json.loads(run.config.to_json()),
    }


def parameters(model: LlamaConfig) -> int:
    """Number of parameters of a model."""
    return leaves(abstract_params(model))


def leaves(tree) -> int:
    """Number of elements of a pytree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def main(config: ConfigDict, folder: Path, name: str) -> None:
    """What the flags ask for."""
    if PLAN.value:
        virtual_devices(config, MESH.value)
        plan_run(config, name, MESH.value)
    elif MESH.value:
        raise InputError("--mesh goes with --plan; a run takes its devices from config.mesh")
    else:
        extend(config, folder, name, steps_to_trace(PROFILE.value))


def steps_to_trace(flag: str) -> tuple[int, int] | None:
    """First and last step of `--profile`, None if it is empty."""
    if not flag:
        return None
    first, _, last = flag.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise InputError(f"--profile={flag} must name a first and a last step, such as 10:12")
    return int(first), int(last)


if __name__ == "__main__":
    cli.run(main, TINY, several=True)
