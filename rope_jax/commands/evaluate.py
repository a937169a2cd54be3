"""The command `evaluate`: a model on benchmarks, under one scale vector or several."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rope_jax.commands.fields import DEFAULTS, changed
from rope_jax.commands.reporter import Reporter
from rope_jax.commands.stages import evaluation_memory, evaluation_plan
from rope_jax.errors import InputError
from rope_jax.evaluation.benchmark import Benchmark, Setting, Subject
from rope_jax.evaluation.benchmarks import BENCHMARKS
from rope_jax.evaluation.engine import Evaluation, Home, prepare
from rope_jax.evaluation.identity import weights_digest
from rope_jax.evaluation.longbench.scoring import write_scores
from rope_jax.files import read_json_object, write_json
from rope_jax.gguf_reader import is_gguf
from rope_jax.interop import gguf_model
from rope_jax.interop.hf_config import SourceConfig
from rope_jax.interop.hub import resolve_model
from rope_jax.interop.huggingface import read_model
from rope_jax.model.backends import Device, check_backend, described_backend
from rope_jax.model.llama import param_shardings
from rope_jax.report.evaluation_page import evaluation_page
from rope_jax.report.page import counted, signed
from rope_jax.report.write import write_page
from rope_jax.rope.embedding import ScaleVector
from rope_jax.runs.folder import RunFolder
from rope_jax.runs.software import versions
from rope_jax.sharding import check_batch


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationJob:
    """An evaluation.

    Attributes:
        path: the model as its user names it; `source` is its folder.
        vectors: method to scale vector.
        names: by benchmark, argument to the user's name for it.
        config: all fields that the user has set, JSON-able.
        may_change: fields of it that may differ between two evaluations in one folder.
        reference: method that the others are compared with; empty for the first.
    """

    name: str
    command: str
    path: str
    source: Path
    vectors: Mapping[str, ScaleVector]
    setting: Setting
    benchmarks: Mapping[str, Benchmark]
    names: Mapping[str, Mapping[str, str]]
    config: Mapping
    may_change: tuple[str, ...] = ()
    reference: str = ""

    def __post_init__(self):
        if self.reference and self.reference not in self.vectors:
            raise InputError(f"`reference` is {self.reference!r}: name one of the methods, {', '.join(self.vectors)}")

    @property
    def dtype(self) -> str:
        """The dtype of the weights: cast to what is computed in once, unless that takes more memory."""
        model = self.setting.model
        return min(model.dtype, model.param_dtype, key=lambda name: jnp.dtype(name).itemsize)


def rehearse(job: EvaluationJob, scratch: RunFolder, reporter: Reporter) -> None:
    """Reports what `evaluate` would do; samples are made in `scratch`. InputError if the model does not fit."""
    evaluation = prepare_evaluation(job, scratch, reporter)
    reporter.say(evaluation_memory(evaluation, job.dtype))
    reporter.say(evaluation_plan(evaluation, len(job.vectors), job.dtype))


def evaluate(job: EvaluationJob, folder: RunFolder, reporter: Reporter) -> dict:
    """Runs every benchmark under every scale vector, resuming an earlier attempt; gives what `results.json` holds."""
    setting = job.setting
    evaluation = prepare_evaluation(job, folder, reporter)
    reporter.say(evaluation_plan(evaluation, len(job.vectors), job.dtype))
    weights, shared = weights_digest(job.source), evaluation.measure_shared()
    with reporter.byte_bar("reading the model") as advance:
        params = read_model(job.source, param_shardings(setting.model, setting.mesh), job.dtype, advance).params
    suites: dict[str, dict] = {name: {} for name in evaluation.benchmarks}
    for method, rope in job.vectors.items():
        for name in suites:
            reporter.say(f"{method}: {name}")
            subject = Subject(setting, params, rope, method, weights)
            suites[name][method] = evaluation.run(name, subject, shared.get(name))
    reference = job.reference or next(iter(job.vectors))
    comparisons = {name: evaluation.compare(name, suites[name], reference) for name in suites}
    for records in suites.values():
        for record in records.values():
            record.pop("by_sample", None)  # predictions/ holds them
    compared = {"reference": reference, "suites": {name: found for name, found in comparisons.items() if found}}
    results = _results(job, evaluation, suites) | {"comparisons": compared}
    _say_ranking(results, reporter)
    write_json(folder / "results.json", results)
    write_page(folder.path, evaluation_page(results))
    reporter.say(
        f"page     {folder / 'report.html'}\nnumbers  {folder / 'results.json'}\nanswers  {folder / 'predictions'}"
    )
    return results


def _say_ranking(results: Mapping, reporter: Reporter) -> None:
    """Ranks methods by NLL far in the window, as paired differences from the reference."""
    reference, found = results["comparisons"]["reference"], results["comparisons"]["suites"].get("perplexity")
    if not found:
        return
    places = next(iter(found.values()))["regions"]
    zero = {name: {**place, "difference": 0.0, "interval": None} for name, place in places.items()}
    ranked = sorted(
        {reference: zero, **{m: f["regions"] for m, f in found.items()}}.items(),
        key=lambda item: item[1]["long"]["difference"],
    )
    width = max(map(len, dict(ranked)))
    heads = (f"{place['start']:,} to {place['end'] - 1:,}" for place in places.values())
    reporter.say(
        f"NLL less that of {reference}, nats per token, by position; 95% intervals over "
        f"{counted(places['long']['units'], 'document')}\n  {'':<{width}}" + "".join(f"{head:>28}" for head in heads)
    )
    for method, regions in ranked:
        cells = (signed(r["difference"], r["interval"], 3) for r in regions.values())
        reporter.say(f"  {method:<{width}}" + "".join(f"{cell:>28}" for cell in cells))


def prepare_evaluation(job: EvaluationJob, folder: RunFolder, reporter: Reporter) -> Evaluation:
    """Checks everything that needs no weights, makes the samples, and reports what is measured."""
    if jax.process_count() > 1:
        raise InputError("evaluation runs in one process: start it on one host, with all of its devices")
    setting = job.setting
    param_shardings(setting.model, setting.mesh)
    check_backend(setting.model)
    for field in ("batch", "generate_batch"):
        check_batch(setting.mesh, getattr(setting, field), field, "rows")
    folder.check(job.config, job.may_change, DEFAULTS)
    home = Home(folder.path, job.names, claim=lambda: folder.claim(job.config), say=reporter.say)
    evaluation = prepare(job.benchmarks, setting, home)
    if not evaluation.benchmarks:
        reasons = "\n".join(f"  {missing.what}: {missing.reason}" for missing in evaluation.not_run)
        raise InputError(f"none of `suite` can be run:\n{reasons}", field="suite")
    home.claim()
    for missing in evaluation.not_run:
        reporter.say(f"not run  {missing.what}: {missing.reason}")
    reporter.say(
        f"{job.name}: {', '.join(evaluation.benchmarks)} by {', '.join(job.vectors)} at "
        f"{', '.join(f'{length:,}' for length in setting.lengths)} tokens; attention by "
        f"{described_backend(setting.model, Device.here())}"
    )
    return evaluation


def _results(job: EvaluationJob, evaluation: Evaluation, suites: Mapping[str, Mapping[str, dict]]) -> dict:
    """Everything that was measured, with what is needed to repeat it."""
    seconds = {
        f"{suite}, {method}": record["seconds"] if "seconds" in record else sum(r["seconds"] for r in record.values())
        for suite, methods in suites.items()
        for method, record in methods.items()
    }
    asked = {name: kind for name, kind in BENCHMARKS.items() if kind.title}
    result = {
        "name": job.name,
        "command": job.command,
        "model": {"path": job.path, "folder": str(job.source), "context": job.setting.model.context},
        "context": {"original": job.setting.original, "lengths": list(job.setting.lengths)},
        "methods": {
            method: {
                "factors": np.asarray(rope.factors, float).tolist(),
                "attention_factor": np.asarray(rope.attention_factor, float).tolist(),
            }
            for method, rope in job.vectors.items()
        },
        "titles": {name: kind.title for name, kind in asked.items()},
        "notes": {name: kind.note for name, kind in asked.items()},
        "suites": suites,
        "not_run": [missing.to_json() for missing in evaluation.not_run],
        "versions": versions(),
        "seconds": seconds,
        "config": job.config,
        "changed": changed(job.config),
    }
    # As a reader of the file sees it.
    return json.loads(json.dumps(result))


def model_folder(path: str, revision: str, reporter: Reporter) -> Path:
    """The folder of a model, which is a folder or a Hub id, or of what the run in a folder has exported."""
    if not path:
        raise InputError("`path` is empty: name a Hugging Face folder, a hub id or a run of extend")
    run = Path(path).expanduser()
    if not (run / "methods").is_dir():
        return resolve_model(path, revision)
    if not (run / "export").is_dir():
        raise InputError(f"`path`: the run in {run} has not exported a model yet; run its command again")
    reporter.say(f"{run} is a run: its export is evaluated")
    return run / "export"


def trained_context(folder: Path, found: SourceConfig) -> int:
    """Tokens that a model was pre-trained on, as far as its config tells."""
    named = [(found.provenance or {}).get("original_context")]
    if is_gguf(folder):
        named.append(gguf_model.trained_context(folder))
    else:
        raw = read_json_object(folder / "config.json")
        blocks = [raw, *(raw.get(key) or {} for key in ("rope_scaling", "rope_parameters"))]
        named += [block.get("original_max_position_embeddings") for block in blocks]
    return next((int(length) for length in named if length), found.config.context)


def score_predictions(source: Path, folder: Path, reporter: Reporter) -> None:
    """Scores a folder of LongBench-E's prediction files, reports the table, and writes it to `folder`."""
    scores = write_scores(source, folder, reporter.bar("scoring"))
    for name, row in scores.items():
        reporter.say(f"  {name:<22}" + "".join(f"{value:>10.2f}" for value in row.values()))
    reporter.say(f"numbers  {folder / 'results.json'}, with intervals and averages {folder / 'longbench_e.json'}")
