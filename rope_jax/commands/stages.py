"""The plan that a run prints at its start, and all that `--dry_run` checks."""

import os

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rope_jax.commands.run import LearnedMethod, Run
from rope_jax.errors import InputError
from rope_jax.evaluation.engine import Evaluation
from rope_jax.model.llama import abstract_params, param_shardings
from rope_jax.plan.chips import GIB
from rope_jax.plan.flops import scoring_flops, training_flops
from rope_jax.plan.memory import account, on_device
from rope_jax.plan.minutes import Stage, benchmark_stages, described, speed
from rope_jax.training.update import Training


def extension_plan(run: Run) -> str:
    """The stages of a run that have not finished, with their minutes; empty if all have."""
    recipe, model = run.recipe, run.recipe.source.model
    waiting = {
        stage: [m for m in recipe.methods if run.method_folder(m).recorded(stage) is None]
        for stage in ("scale", "before", "after")
    }
    stages = []
    if run.pretraining and not run.folder.has("model"):
        stages.append(Stage("pre-training", 1, training_flops(model, run.pretraining)))
    learned = 0.0
    for method in (recipe.methods[name] for name in waiting["scale"]):
        if isinstance(method, LearnedMethod):
            length = recipe.measure.target
            learned += 3 * method.steps * method.batch * scoring_flops(model, length, length)
    stages.append(Stage("solving", bool(waiting["scale"]), learned or None, "seconds"))
    stages += benchmark_stages(run.evaluation, len(waiting["before"]) + len(waiting["after"]))
    tuning = training_flops(model, recipe.tuning[recipe.exported])
    stages.append(Stage("fine-tuning", len(waiting["after"]), tuning))
    size = run.parameters * jnp.dtype(model.param_dtype).itemsize / 1e6
    stages.append(Stage("export", not run.folder.has("export"), None, f"{size:,.0f} MB"))
    return described(stages, lambda: speed(run.evaluation.setting, model.param_dtype))


def evaluation_plan(evaluation: Evaluation, methods: int, dtype: str) -> str:
    """The benchmarks of an evaluation under so many vectors, with weights of a dtype, and their minutes."""
    return described(benchmark_stages(evaluation, methods), lambda: speed(evaluation.setting, dtype))


def training_memory(run: Run) -> str:
    """What a training step takes of a device, as a line; InputError if a device does not have it."""
    training = Training(run.recipe.source.model, run.recipe.tuning[run.recipe.exported], run.mesh)
    needed = account(training, run.recipe.source.own).peak
    return _memory("a training step", needed, run.mesh, "global_batch")


def evaluation_memory(evaluation: Evaluation, dtype: str) -> str:
    """What weights and the cache of an evaluation take of a device, as a line; InputError if it does not have it."""
    setting = evaluation.setting
    model, mesh = setting.model, setting.mesh
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding),
        abstract_params(model),
        param_shardings(model, mesh),
    )
    width = 2 * model.num_layers * model.num_kv_heads * model.head_dim * jnp.dtype(model.dtype).itemsize
    cache = setting.generate_batch * max(setting.lengths) * width // mesh.size
    return _memory("weights and cache", on_device(placed) + cache, mesh, "generate_batch")


def _memory(what: str, needed: int, mesh: Mesh, field: str) -> str:
    stats = mesh.local_devices[0].memory_stats() or {}
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(mesh.local_devices)
    limit = stats.get("bytes_limit", host)
    if needed > limit:
        raise InputError(
            f"`{field}` asks for {needed / GIB:,.1f} GiB for {what}, and a device has {limit / GIB:,.1f} GiB: "
            "lower it, or see docs/planning.md"
        )
    return f"memory   {needed / GIB:,.1f} GiB for {what}, of {limit / GIB:,.1f} GiB on a device"
