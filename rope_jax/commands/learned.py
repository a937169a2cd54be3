"""The method 'learned': a scale vector by gradient descent through the model that is extended."""

from collections.abc import Iterator

import jax
import numpy as np

from rope_jax.commands.fields import LEARNED
from rope_jax.commands.reporter import Reporter
from rope_jax.commands.run import LearnedMethod, Run
from rope_jax.commands.source import read_params
from rope_jax.evaluation.intervals import bootstrap_ratios, percentile_interval
from rope_jax.rope.embedding import ScaleVector
from rope_jax.rope.methods.method import Solution
from rope_jax.sharding import batch_sharding, place_rows, process_rows
from rope_jax.training.learn import Learned, learn
from rope_jax.training.state import Variables


def learned_solution(run: Run, method: LearnedMethod, reporter: Reporter) -> tuple[Solution, Learned]:
    """Learns a scale vector on packed batches like those of fine-tuning.

    Returns:
        The learned vector with its disturbance, and what was found on the way.
    """
    recipe, source = run.recipe, run.recipe.source
    base = Variables(
        read_params(source.folder, source.model, run.mesh, reporter),
        method.initial(recipe.geometry, recipe.measure).scale,
    )
    with jax.set_mesh(run.mesh):
        rows = _batches(run, method, reporter)
        found = learn(base, source.model, rows, method.config, run.mesh)
    return Solution.measured(recipe.geometry, recipe.measure, found.scale), found


def gradient_record(gradients: ScaleVector) -> dict:
    """Means of the gradients of all steps, and the interval of each pair's, summed over layers, from a bootstrap."""
    by_step = np.asarray(gradients.factors, float)
    pairs = by_step.reshape(len(by_step), -1, by_step.shape[-1]).sum(axis=1)
    interval = percentile_interval(bootstrap_ratios(pairs, np.ones(len(pairs)))) if len(pairs) > 1 else None
    return {
        "factors": by_step.mean(axis=0).tolist(),
        "attention_factor": np.mean(gradients.attention_factor, axis=0, dtype=float).tolist(),
        "interval": interval and [end.tolist() for end in interval],
    }


def _batches(run: Run, method: LearnedMethod, reporter: Reporter) -> Iterator[dict]:
    tuning = run.recipe.tuning[LEARNED]
    held, sharding = process_rows(run.mesh, method.batch), batch_sharding(run.mesh)
    batches = run.batches(method.batch, tuning)
    for _ in reporter.bar("learning factors")(range(method.steps)):
        yield {name: place_rows(rows, held, method.batch, sharding, 0) for name, rows in next(batches).items()}
