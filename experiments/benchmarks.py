"""From a config's fields to the benchmarks and what they share."""

from __future__ import annotations

from collections.abc import Mapping

from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import build
from experiments.names import renamed
from rope_jax.data.tokenizer import Tokenizer
from rope_jax.evaluation.benchmark import Benchmark, Setting
from rope_jax.evaluation.benchmarks import BENCHMARKS
from rope_jax.evaluation.texts import TextSelection
from rope_jax.model.config import LlamaConfig

# Argument to field, of each benchmark.
FIELDS: Mapping[str, Mapping[str, str]] = {
    "perplexity": {"stride": "eval.stride", "conventions": "eval.conventions"},
    "longppl": {"evaluator": "eval.longppl_evaluator", "context": "eval.longppl_context"},
    "leaderboard": {"folder": "eval.leaderboard", "limit": "eval.leaderboard_limit"},
    "passkey": {
        "lengths": "eval.passkey_lengths",
        "trials": "eval.passkey_trials",
        "depths": "eval.passkey_depths",
        "new_tokens": "eval.passkey_new_tokens",
    },
    "longbench_e": {
        "folder": "eval.longbench",
        "rows": "eval.longbench_rows",
        "max_length": "eval.longbench_max_length",
    },
    "ruler": {
        "samples": "eval.samples",
        "essays": "eval.essays",
        "squad": "eval.squad",
        "hotpotqa": "eval.hotpotqa",
    },
    "key_value": {"samples": "eval.samples"},
    "many_shot": {"samples": "eval.samples", "folder": "eval.many_shot"},
    "babilong": {"samples": "eval.samples", "stories": "eval.babilong", "books": "eval.books"},
}
# Of the texts, and of what benchmarks share.
TEXTS = {
    "name": "data.name",
    "path": "data.path",
    "split": "eval.split",
    "max_tokens": "eval.max_tokens",
    "position_tokens": "eval.position_tokens",
    "document_tokens": "eval.document_tokens",
}
SHARED = {"lengths": "eval.lengths", "batch": "eval.batch", "chunk": "train.loss_chunk", "seed": "seed"}


def names(benchmark: str = "") -> dict[str, str]:
    """Argument to config field: of a benchmark with what it is given, or without a name of what all share."""
    found = {**TEXTS, **SHARED, "generate_batch": "eval.generate_batch", **FIELDS.get(benchmark, {})}
    return {argument: f"config.{field}" for argument, field in found.items()}


def benchmark(config: ConfigDict, name: str, **changes) -> Benchmark:
    """A benchmark with the config's parameters.

    Args:
        config: the run's config.
        name: of the benchmark.
        **changes: parameters that the config does not decide.

    Returns:
        The benchmark.

    Raises:
        InputError: naming the field that is wrong.
    """
    with renamed(names(name)):
        return BENCHMARKS[name](
            **{argument: build.value(config, field) for argument, field in FIELDS[name].items()} | changes
        )


def texts(config: ConfigDict) -> TextSelection:
    """The texts that the config names."""
    return TextSelection(**{argument: build.value(config, field) for argument, field in TEXTS.items()})


def setting(config: ConfigDict, model: LlamaConfig, tokenizer: Tokenizer, mesh: Mesh, **shared) -> Setting:
    """What benchmarks share.

    Args:
        config: the run's config.
        model: how the model is computed.
        tokenizer: the model's.
        mesh: devices.
        **shared: what else `Setting` takes.

    Returns:
        The setting.

    Raises:
        InputError: naming the field that is wrong.
    """
    with renamed(names()):
        return Setting(
            model,
            tokenizer,
            mesh,
            seed=config.seed,
            batch=config.eval.batch,
            chunk=config.train.loss_chunk,
            compute=build.compute(config).of,
            **shared,
        )
