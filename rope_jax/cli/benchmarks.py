"""From a config's fields to the benchmarks and what they share."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from rope_jax.cli import build
from rope_jax.cli.names import renamed, value
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
    "passkey": {name: f"eval.passkey_{name}" for name in ("lengths", "trials", "depths", "new_tokens")},
    "recall": {name: f"eval.recall_{name}" for name in ("lengths", "texts")},
    "longbench_e": {
        "folder": "eval.longbench",
        "rows": "eval.longbench_rows",
        "max_length": "eval.longbench_max_length",
    },
    "ruler": {"samples": "eval.samples", "essays": "eval.essays", "squad": "eval.squad", "hotpotqa": "eval.hotpotqa"},
    "key_value": {"samples": "eval.samples"},
    "many_shot": {"samples": "eval.samples", "folder": "eval.many_shot"},
    "babilong": {"samples": "eval.samples", "stories": "eval.babilong", "books": "eval.books"},
}
# Of the texts, and of what benchmarks share.
TEXTS = {
    "name": "data.name",
    "path": "data.path",
    **{name: f"eval.{name}" for name in ("split", "max_tokens", "position_tokens", "document_tokens")},
}
SHARED = {"lengths": "eval.lengths", "batch": "eval.batch", "chunk": "train.loss_chunk", "seed": "seed"}


def names(benchmark: str = "") -> dict[str, str]:
    """Argument to config field: of a benchmark with what it is given, or without a name of what all share."""
    found = {**TEXTS, **SHARED, "generate_batch": "eval.generate_batch", **FIELDS.get(benchmark, {})}
    return {argument: f"config.{field}" for argument, field in found.items()}


def values(config: ConfigDict, fields: Mapping[str, str]) -> dict[str, Any]:
    return {argument: value(config, field) for argument, field in fields.items()}


def benchmark(config: ConfigDict, name: str, **changes) -> Benchmark:
    """A benchmark with the config's parameters, except for `changes`."""
    with renamed(names(name)):
        return BENCHMARKS[name](**values(config, FIELDS[name]) | changes)


def texts(config: ConfigDict) -> TextSelection:
    return TextSelection(**values(config, TEXTS))


def setting(config: ConfigDict, model: LlamaConfig, tokenizer: Tokenizer, mesh: Mesh, **shared) -> Setting:
    """What benchmarks share: as the config has it, and `shared`."""
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
