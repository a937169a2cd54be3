"""Evaluates a model on the paper's benchmarks and stronger ones, under one scale vector or several.

python -m experiments.evaluate --config.model.path=MODEL --config.suite=passkey,key_value
python -m experiments.evaluate --config.model.path=runs/tiny --config.suite=perplexity --config.data.path=TEXTS
python -m experiments.evaluate --score DIR --workdir OUT      # LongBench-E's prediction files, without a model

MODEL is a Hugging Face folder or hub id, or the folder of a run of experiments.extend. Every prediction is kept as it
is made: interrupted anywhere, the same command goes on, and later ones may add suites and methods. The workdir then
holds `report.md`, `results.json` with every number, and `predictions/`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from functools import partial
from pathlib import Path

# On a shared CPU the libraries below greet on standard error; a user's first screen should be ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import cli, workdir
from experiments.evaluation_job import Job, prepare, wanted_suites
from experiments.leaderboard import measure_leaderboard
from experiments.longppl import find_keys, measure_longppl
from experiments.measured import Subject, measure_perplexity
from experiments.prepared import read_part
from experiments.progress import bar, say
from experiments.reading import read_params
from experiments.suites import SUITES
from rope_jax.evaluation.answering import answer_samples
from rope_jax.evaluation.depths import depth_grids
from rope_jax.evaluation.longbench.samples import prediction_row
from rope_jax.evaluation.longbench.scoring import write_scores
from rope_jax.evaluation.scores import average_of_run
from rope_jax.files import write_json, write_text
from rope_jax.model.generate import greedy_batches
from rope_jax.report.evaluation_page import evaluation_page
from rope_jax.report.page import write_page
from rope_jax.rope.embedding import ScaleVector
from rope_jax.sharding import cache_sharding

DEFAULT = Path(__file__).resolve().parents[1] / "configs" / "eval.py"
SCORE = flags.DEFINE_string("score", "", "Folder of LongBench-E prediction files to score; no model is read.")


def evaluate(config: ConfigDict, folder: Path, name: str) -> dict:
    """Runs every suite under every scale vector.

    Args:
        config: the evaluation's config.
        folder: where everything is written.
        name: of the config.

    Returns:
        What `results.json` holds.

    Raises:
        InputError: naming the field or file that cannot be used, or if no suite can be run, before the model is read.
    """
    job = prepare(config, folder)
    for missing in job.not_run:
        say(f"not run  {missing.what}: {missing.reason}")
    names = ", ".join((*job.measured, *job.samples))
    say(f"{name}: {names} by {', '.join(job.vectors)} at {', '.join(f'{n:,}' for n in job.lengths)} tokens")
    keys = longppl_keys(job) if "longppl" in job.measured else None
    params = read_params(job.source, job.model, job.mesh)
    suites: dict[str, dict] = {suite: {} for suite in wanted_suites(config) if suite in (*job.measured, *job.samples)}
    for method, rope in job.vectors.items():
        for suite in suites:
            say(f"{method}: {suite}")
            if suite in SUITES:
                suites[suite][method] = answered(job, suite, method, params, rope)
            else:
                suites[suite][method] = measure(job, suite, method, params, rope, keys)
    results = collect(job, name, suites)
    write_json(folder / "results.json", results)
    write_page(folder, evaluation_page(results))
    say(f"page     {folder / 'report.md'}\nnumbers  {folder / 'results.json'}\nanswers  {folder / 'predictions'}")
    return results


def longppl_keys(job: Job) -> list[np.ndarray]:
    """Key tokens of the texts, which are the same for all methods."""
    path = job.folder / "measured" / "longppl_keys.json"
    return find_keys(job.config, job.evaluator, job.texts, job.tokenizer, max(job.lengths), job.mesh, path)


def measure(job: Job, suite: str, method: str, params, rope: ScaleVector, keys) -> dict:
    """Runs a suite of `MEASURED` under one method."""
    path = job.folder / "measured" / method / f"{suite}.json"
    subject = Subject(
        job.config, job.model, params, rope, job.tokenizer, job.mesh, job.original, job.lengths, job.token_nll
    )
    if suite == "perplexity":
        return measure_perplexity(subject, job.texts, path)
    if suite == "longppl":
        return measure_longppl(subject, job.texts, keys, path)
    return measure_leaderboard(subject, job.harness, path)


def answered(job: Job, suite: str, method: str, params, rope: ScaleVector) -> dict:
    """Runs a suite of questions under one method, and scores it.

    Returns:
        `table` and `grids`, see `rope_jax.evaluation`, the number of `samples`, and `seconds`.
    """
    kind, path = SUITES[suite], job.folder / "predictions" / method / f"{suite}.jsonl"
    samples = [sample for part in job.samples[suite] for sample in read_part(part)]
    generate = partial(greedy_batches, params, job.model, rope, cache_sharding=cache_sharding(job.mesh))
    predictions = answer_samples(
        samples, path, generate, job.tokenizer, kind.score, job.config.eval.generate_batch, bar(f"{method}, {suite}")
    )
    if suite == "longbench_e":
        # In the benchmark's own form, which its own scorer and --score read.
        for task in dict.fromkeys(sample.task for sample in samples):
            rows = [prediction_row(s, predictions[s.id].prediction) for s in samples if s.task == task]
            write_text(path.with_suffix("") / f"{task}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    scores = {name: prediction.score for name, prediction in predictions.items()}
    table = average_of_run(kind.table(samples, scores, kind.tasks, job.config.seed))
    grids = {}
    if kind.depth:
        grids = depth_grids(samples, scores, kind.depth, kind.bins(job.config.eval), job.config.seed)
    return {
        "table": {task: {c: dataclasses.asdict(cell) for c, cell in row.items()} for task, row in table.items()},
        "grids": grids,
        "samples": len(samples),
        "seconds": sum(prediction.seconds for prediction in predictions.values()),
    }


def collect(job: Job, name: str, suites: dict[str, dict]) -> dict:
    """Everything that was measured, with what is needed to repeat it."""
    config = job.config
    seconds = {
        f"{suite}, {method}": record["seconds"] if "seconds" in record else sum(r["seconds"] for r in record.values())
        for suite, methods in suites.items()
        for method, record in methods.items()
    }
    result = {
        "name": name,
        "command": "python -m experiments.evaluate" + "".join(f" {shlex.quote(arg)}" for arg in sys.argv[1:]),
        "model": {"path": config.model.path, "folder": str(job.source), "context": job.model.context},
        "context": {"original": job.original, "lengths": list(job.lengths)},
        "methods": {
            method: {
                "factors": np.asarray(rope.factors, float).tolist(),
                "attention_factor": float(rope.attention_factor),
            }
            for method, rope in job.vectors.items()
        },
        "titles": {suite: kind.title for suite, kind in SUITES.items()},
        "notes": {suite: kind.note for suite, kind in SUITES.items()},
        "suites": suites,
        "not_run": [dataclasses.asdict(missing) for missing in job.not_run],
        "versions": workdir.versions(),
        "seconds": seconds,
        "config": json.loads(config.to_json()),
    }
    # As a reader of the file will see it.
    return json.loads(json.dumps(result))


def score(source: Path, folder: Path) -> None:
    """Scores a folder of LongBench-E's prediction files, and says the table."""
    scores = write_scores(source, folder, bar("scoring"))
    for name, row in scores.items():
        say(f"  {name:<22}" + "".join(f"{value:>10.2f}" for value in row.values()))
    say(f"numbers  {folder / 'results.json'}, with intervals and averages {folder / 'longbench_e.json'}")


def run(config: ConfigDict, folder: Path, name: str) -> None:
    """The command: an evaluation, or with `--score` the scoring of prediction files."""
    if SCORE.value:
        score(Path(SCORE.value).expanduser(), folder)
    else:
        evaluate(config, folder, name)


if __name__ == "__main__":
    cli.run(run, DEFAULT)
