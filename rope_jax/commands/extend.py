"""The command `extend`: solve, evaluate, fine-tune, evaluate, export."""

import dataclasses
import time
from collections.abc import Mapping

import flax.linen as nn
import jax
import numpy as np

from rope_jax import multihost
from rope_jax.commands import cards
from rope_jax.commands.cards import card, described, provenance
from rope_jax.commands.fields import changed
from rope_jax.commands.fit import fit
from rope_jax.commands.learned import gradient_record, learned_solution
from rope_jax.commands.reporter import Reporter
from rope_jax.commands.run import LearnedMethod, Recipe, Run
from rope_jax.commands.source import read_params
from rope_jax.commands.stages import extension_plan, training_memory
from rope_jax.data.pipeline import share_past
from rope_jax.errors import InputError
from rope_jax.evaluation.benchmark import Subject
from rope_jax.evaluation.comparison import compare_perplexities
from rope_jax.evaluation.identity import weights_digest
from rope_jax.evaluation.record import stage_record
from rope_jax.files import write_json
from rope_jax.interop.huggingface import write_model
from rope_jax.interop.model_card import write_card
from rope_jax.model.backends import Device, described_backend
from rope_jax.model.llama import init_params, param_shardings
from rope_jax.plan.flops import model_flops
from rope_jax.plan.memory import measured
from rope_jax.report.extension_page import extension_page
from rope_jax.report.metrics import read_metrics
from rope_jax.report.write import write_page
from rope_jax.rope.embedding import ScaleVector, identity
from rope_jax.rope.methods.adjusted import parse_adjusted
from rope_jax.rope.methods.explicit import Explicit
from rope_jax.rope.methods.method import Method
from rope_jax.rope.methods.registered import REGISTERED
from rope_jax.runs.software import versions
from rope_jax.training.loop import Start
from rope_jax.training.state import Variables
from rope_jax.training.update import Training


def extend(run: Run, reporter: Reporter) -> dict:
    """Extends a model's context by every method of a run; gives what `results.json` holds.

    Interrupted anywhere, the same call resumes from the last finished stage or checkpoint.

    Raises:
        NonFiniteLoss: naming the step.
    """
    recipe, folder = run.recipe, run.folder
    reporter.say(f"{run.name}: {_summary(run)}; everything goes to {folder.path}\n{_devices(run)}")
    for note in recipe.source.notes:
        reporter.say(note)
    if plan := extension_plan(run):
        reporter.say(plan)
    if run.pretraining and not folder.has("model"):
        pretrain(run, reporter)

    reporter.say("disturbance x 1000, and interpolated dimensions")
    scales = {method: solve(run, method, reporter) for method in recipe.methods}

    reporter.say("evaluating each scale vector before fine-tuning")
    of = identities(run, scales)
    evaluate_before(run, scales, of, reporter)

    reporter.say(f"fine-tuning on {described(recipe.tuning[recipe.exported])}{_long_documents(run)}")
    for method, scale in scales.items():
        tune(run, method, scale, of[method], reporter)

    results = write_report(run)
    reporter.say(f"page     {folder / 'report.html'}\nexport   {folder / 'export'}\nnumbers  {folder / 'results.json'}")
    for command in run.next_commands[:1]:
        reporter.say(f"next     {command}")
    return results


def rehearse(run: Run, reporter: Reporter) -> None:
    """Reports what `extend` would do, without writing anything; InputError if a training step does not fit."""
    reporter.say(f"{run.name}: {_summary(run)}, into {run.folder.path}\n{_devices(run)}\n{training_memory(run)}")
    reporter.say(extension_plan(run) or "plan     every stage has finished")


def pretrain(run: Run, reporter: Reporter) -> None:
    """Trains a small model from random weights and writes it as a Hugging Face folder."""
    model, original, config = run.recipe.source.model, run.recipe.measure.original, run.pretraining
    assert config is not None
    reporter.say(f"pre-training a model of {run.parameters:,} parameters at {original} tokens")
    rope = identity(model.head_dim)
    training = Training(model, config, run.mesh)
    trained = fit(run, training, Start(rope, lambda: _random_params(run)), run.folder.at("pretrain"), reporter)
    with reporter.byte_bar("writing the model") as progress:
        write_model(
            run.recipe.source.folder,
            dataclasses.replace(model, context=original),
            trained.params,
            rope,
            context=original,
            provenance={"trained_by": "rope-jax", "steps": config.optimizer.steps},
            extra_files=run.tokenizer.save,
            dtype="float32",
            progress=progress,
        )


def solve(run: Run, method: str, reporter: Reporter) -> ScaleVector:
    """Finds a method's scale vector and records it with its disturbance."""
    # Processes that solve on their own need not agree in the last bit, so that the record of the first holds.
    record = run.method_folder(method).record("scale", lambda: solution_record(run, method, reporter))
    reporter.say(f"  {method:<16} {record['disturbance_e3']:8.2f} {record['interpolated_dimensions']:6d}")
    scale, chosen = ScaleVector.create(record["factors"], record["attention_factor"]), run.recipe.methods[method]
    own = parse_adjusted(method).method in REGISTERED
    if isinstance(chosen, Explicit) or (own and isinstance(chosen, Method)):
        given = chosen(run.recipe.geometry, run.recipe.measure).scale
        # The last bit of what is computed may be another machine's.
        equal = np.allclose if own else np.array_equal
        if not all(map(equal, jax.tree.leaves(given), jax.tree.leaves(scale))):
            what = f"`methods`: the factors of {method!r}" if own else "`factors`"
            raise InputError(
                f"{what} have changed since the run in {run.folder.path} began: choose another `folder`, or name the "
                "old ones"
            )
    return scale


def solution_record(run: Run, name: str, reporter: Reporter) -> dict:
    """The content of a method's `scale.json`."""
    method, record = run.recipe.methods[name], {}
    if isinstance(method, LearnedMethod):
        solution, found = learned_solution(run, method, reporter)
        gradient = gradient_record(found.gradients)
        record = {"losses": found.losses.tolist(), "start": method.start, "gradient": gradient}
    else:
        solution = method(run.recipe.geometry, run.recipe.measure)
    record |= {
        "factors": np.asarray(solution.scale.factors, float).tolist(),
        "attention_factor": np.asarray(solution.scale.attention_factor, float).tolist(),
        "base": run.recipe.geometry.base,
        "disturbance": np.asarray(solution.disturbance, float).tolist(),
        "disturbance_e3": 1e3 * float(np.mean(solution.disturbance)),
        "interpolated_dimensions": solution.interpolated_dimensions,
    }
    if solution.selection is not None:
        record["thresholds"] = np.asarray(solution.selection.thresholds, float).tolist()
        record["margin"] = np.asarray(solution.selection.margin, float).tolist()
    return record


def identities(run: Run, scales: Mapping[str, ScaleVector]) -> dict[str, dict[str, str]]:
    """Digests of what each method's evaluations depend on; its fine-tuned weights follow from these and the config."""
    weights = multihost.from_first(lambda: weights_digest(run.recipe.source.folder))
    setting = run.evaluation.setting
    return {m: run.evaluation.identity(Subject(setting, None, scale, m, weights)) for m, scale in scales.items()}


def evaluate_before(run: Run, scales: Mapping[str, ScaleVector], of: Mapping, reporter: Reporter) -> None:
    """Evaluates the model as it is under each scale vector."""
    waiting = [m for m in scales if not run.method_folder(m).recorded("before", of[m], reporter.say)]
    if waiting:
        params = _read_source(run, reporter)
        for method in waiting:
            evaluate(run, method, "before", Variables(params, scales[method]), of=of[method], reporter=reporter)


def evaluate(run: Run, method: str, stage: str, model: Variables, *, of: Mapping[str, str], reporter: Reporter) -> None:
    """Evaluates a model and records it as a method's stage, with what it depends on under `of`."""
    record = run.method_folder(method).record(stage, lambda: {**evaluation_record(run, model), "of": of})
    windows = (f"perplexity {result['perplexity']:.3f} at {window}" for window, result in record["perplexity"].items())
    reporter.say(f"  {method:<16} {stage:<7} {', '.join(windows)}")


def evaluation_record(run: Run, model: Variables) -> dict:
    """The content of `before.json` and `after.json`."""
    began = time.monotonic()
    record = stage_record(run.evaluation, Subject(run.evaluation.setting, model.params, model.rope))
    factors = np.asarray(model.rope.factors, float).tolist()
    return {**record, "seconds": time.monotonic() - began, "factors": factors}


def tune(run: Run, method: str, scale: ScaleVector, of: Mapping[str, str], reporter: Reporter) -> None:
    """Fine-tunes under a scale vector, evaluates and, for the exported method, exports, as far as that is not done.

    The trained weights end with this function: in memory, the next method trains alone.
    """
    evaluated = run.method_folder(method).recorded("after", of, reporter.say)
    exported = method != run.recipe.exported or run.folder.has("export")
    if evaluated and exported:
        return
    tuned = fine_tune(run, method, scale, reporter)
    evaluate(run, method, "after", tuned, of=of, reporter=reporter)
    if not exported:
        export(run, tuned, reporter)


def fine_tune(run: Run, method: str, scale: ScaleVector, reporter: Reporter) -> Variables:
    """Fine-tunes at the extended context under a scale vector (section 4.1 of the paper)."""
    training = Training(run.recipe.source.model, run.recipe.tuning[method], run.mesh)
    original = jax.tree.map(lambda own, like: np.broadcast_to(own, np.shape(like)), run.recipe.geometry.own, scale)
    start = Start(scale, lambda: _read_source(run, reporter), original if training.config.mix else None)
    tuned = fit(run, training, start, run.method_folder(method), reporter)
    # On the host, like the vectors of other methods: evaluation compiles once for all of them.
    return dataclasses.replace(tuned, rope=jax.device_get(tuned.rope))


def export(run: Run, tuned: Variables, reporter: Reporter) -> None:
    """Writes the first method's fine-tuned model as a Hugging Face folder, with its card."""
    recipe, method = run.recipe, run.recipe.exported
    steps = recipe.tuning[method].optimizer.steps
    records = {stage: run.method_folder(method).recorded(stage) for stage in ("before", "after")}
    facts = card(recipe, method, tuned.rope, steps, **records)
    source = recipe.source.folder if recipe.source.path else None
    with reporter.byte_bar("writing the folder") as progress:
        write_model(
            run.folder / "export",
            recipe.source.model,
            tuned.params,
            tuned.rope,
            context=recipe.measure.target,
            provenance=provenance(recipe, method, steps),
            extra_files=lambda place: write_card(place, facts, source),
            source=recipe.source.folder,
            dtype=recipe.source.known.config.param_dtype,
            progress=progress,
        )


def write_report(run: Run) -> dict:
    """Writes `results.json`: all that was measured, and what is needed to repeat it. Writes the page from it."""
    recipe, model, corpus = run.recipe, run.recipe.source.model, run.recipe.corpus
    folders = {method: run.method_folder(method) for method in recipe.methods}
    methods = {m: {stage: f.recorded(stage) for stage in ("scale", "before", "after")} for m, f in folders.items()}
    curves = {method: read_metrics(folder / "metrics.jsonl") for method, folder in folders.items()}
    tuning = recipe.tuning[recipe.exported]
    tokens = tuning.optimizer.steps * tuning.global_batch * tuning.length
    results = {
        "name": run.name,
        "command": run.command,
        "next": list(run.next_commands),
        "context": {"original": recipe.measure.original, "target": recipe.measure.target},
        "extension": {"intervals": recipe.measure.intervals, "n_hat": run.settings["solve"]["n_hat"]},
        "model": {
            "parameters": run.parameters,
            "description": f"{model.num_layers} layers, width {model.hidden_size}",
            "head_dim": model.head_dim,
            "source": recipe.source.path or "pre-trained in this run",
            "commit": recipe.source.commit,
        },
        "data": {
            "description": corpus.name + (f", {corpus.path}" if corpus.path else ""),
            "split": corpus.split,
            **(run.folder.recorded("data") or {}),
        },
        "train": {
            "steps": tuning.optimizer.steps,
            "tokens_per_step": tuning.global_batch * tuning.length,
            "length": tuning.length,
            "reach": tuning.skips.reach if tuning.skips else tuning.length,
            "mix": tuning.mix.share if tuning.mix else 0.0,
            "description": cards.training(tuning, tuning.optimizer.steps),
            "flops": tokens * model_flops(model, tuning.length, frozen=tuning.lora is not None),
            "peak_bytes": measured(run.mesh),
        },
        "eval": {"stride": run.settings["eval"]["stride"]},
        "methods": methods,
        "comparisons": {
            **{stage: _comparisons(run, methods, stage, stage) for stage in ("before", "after")},
            "gain": _comparisons(run, methods, "before", "after"),
        },
        "export": {"method": recipe.exported, "folder": "export"},
        "versions": versions(),
        "seconds": _seconds(run, methods, curves),
        "config": run.settings,
        "changed": changed(run.settings),
    }
    if multihost.is_first():
        write_json(run.folder / "results.json", results)
        write_page(run.folder.path, extension_page(results, curves))
    return results


def _comparisons(run: Run, methods: Mapping[str, Mapping], stage: str, reference: str) -> dict[str, dict]:
    """Paired differences in NLL of methods at a stage from the exported one at the stage `reference`."""

    def records(method: str, stage: str) -> dict:
        found = methods[method][stage]
        by_window = {f"{window} token": record for window, record in found["perplexity"].items()}
        return by_window | {"by_position": found["by_position"]}

    exported, original = run.recipe.exported, run.recipe.measure.original
    theirs = records(exported, reference)
    return {
        method: compare_perplexities(records(method, stage), theirs, original, run.seed)
        for method in methods
        if (method, stage) != (exported, reference)
    }


def check_exportable(recipe: Recipe) -> None:
    """Checks that the exported method has one scale vector for all layers; names the parameter at fault."""
    method = recipe.methods[recipe.exported]
    field = (method.initial if isinstance(method, LearnedMethod) else method).layered
    if field:
        raise InputError(
            f"`{field}` gives a vector per layer, which no stock config.json can say, so that it cannot be "
            "exported: give one vector, or compare this method with another that is exported"
        )


def _long_documents(run: Run) -> str:
    """How much of fine-tuning happens beyond the original context, where a model learns what is new to it."""
    recipe, original = run.recipe, run.recipe.measure.original
    tuning = recipe.tuning[recipe.exported]
    if tuning.length <= original:
        return ""

    def estimate() -> dict:
        return {"share_past_original_context": share_past(run.documents, run.tokenizer, tuning.length, original)}

    share = run.folder.record("data", estimate)["share_past_original_context"]
    if not share:
        return f"; none is past token {original:,} of its document, for no text is longer"
    extended = 1 - tuning.mix.share if tuning.mix else 1
    share, most = extended * share, extended * (1 - original / tuning.length)
    return f"; about {share:.2g} of the tokens are past token {original:,} of their documents, at most {most:.2g}"


def _read_source(run: Run, reporter: Reporter) -> dict:
    return read_params(run.recipe.source.folder, run.recipe.source.model, run.mesh, reporter)


def _random_params(run: Run) -> dict:
    model = run.recipe.source.model
    initial = jax.jit(lambda key: nn.unbox(init_params(model, key)), out_shardings=param_shardings(model, run.mesh))
    return initial(jax.random.key(run.seed))


def _seconds(run: Run, methods: Mapping[str, Mapping], curves: Mapping[str, list[dict]]) -> dict[str, float]:
    seconds = {}
    pretraining = read_metrics(run.folder / "pretrain/metrics.jsonl")
    if pretraining:
        seconds["pre-training"] = sum(row["seconds"] for row in pretraining)
    for method, record in methods.items():
        seconds[f"fine-tuning {method}"] = sum(row["seconds"] for row in curves[method])
        seconds[f"evaluating {method}"] = record["before"]["seconds"] + record["after"]["seconds"]
    return seconds


def _summary(run: Run) -> str:
    measure = run.recipe.measure
    return f"{measure.original:,} to {measure.target:,} tokens by {', '.join(run.recipe.methods)}"


def _devices(run: Run) -> str:
    device, pieces = Device.here(), run.mesh.shape["context"]
    ring = f"; sequences are cut into {pieces} pieces" if pieces > 1 else ""
    attention = described_backend(run.recipe.source.model, device, ring=pieces > 1)
    return f"{run.mesh.size} x {device.kind}; attention by {attention}{ring}"
