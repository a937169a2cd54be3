"""The method 'learned': a scale vector by gradient through the model that is extended."""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from experiments.progress import bar
from experiments.settings import Extension
from rope_jax.data.pipeline import training_batches
from rope_jax.data.source import TextSource
from rope_jax.data.tokenizer import Tokenizer
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.methods.method import Solution
from rope_jax.sharding import batch_sharding, place_rows, process_rows
from rope_jax.training.learn import LearnConfig, Learned, learn
from rope_jax.training.state import Variables


def learned_solution(
    params: dict,
    model: LlamaConfig,
    extension: Extension,
    start: str,
    learning: LearnConfig,
    documents: TextSource,
    tokenizer: Tokenizer,
    rows: int,
    steps: int,
    seed: int,
    streams: int,
    mesh: Mesh,
) -> tuple[Solution, Learned]:
    """Learns a scale vector on packed batches at the extended context, and measures its disturbance.

    Args:
        params: sharded parameters of the model to extend; they stay as they are.
        model: its config.
        extension: what is extended.
        start: method whose vector is the starting point.
        learning: see `LearnConfig`.
        documents: what is learned on.
        tokenizer: the model's.
        rows: sequences per step.
        steps: gradient steps.
        seed: of the order of documents.
        streams: see `training_batches`.
        mesh: devices.

    Returns:
        The solution, and how the loss fell.
    """
    held = process_rows(mesh, rows)
    batches = training_batches(
        documents,
        tokenizer,
        rows,
        extension.measure.target,
        seed,
        rows=held,
        streams=streams,
    )
    sharding = batch_sharding(mesh)

    def placed():
        for _ in bar("learning factors")(range(steps)):
            yield {name: place_rows(value, held, rows, sharding, 0) for name, value in next(batches).items()}

    with jax.set_mesh(mesh):
        learned = learn(Variables(params, extension.solve(start).scale), model, placed(), learning, mesh)
    return Solution.measured(extension.geometry, extension.measure, learned.scale), learned
