"""The minutes that the stages of a command take on the devices that are here, from one timed batch."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rope_jax.evaluation.answering import with_bos
from rope_jax.evaluation.benchmark import Questions, Setting, Subject
from rope_jax.evaluation.engine import Evaluation
from rope_jax.evaluation.nll import make_token_nll, scored_columns
from rope_jax.evaluation.perplexity.benchmark import PerplexityBenchmark
from rope_jax.evaluation.recall import Recall
from rope_jax.model.llama import abstract_params, param_shardings
from rope_jax.plan.flops import scoring_flops
from rope_jax.rope.embedding import identity
from rope_jax.sharding import row_sharding, shards

# Less takes seconds anywhere: not worth compiling a batch to time.
WORTH_TIMING = 1e11
# The most that a CPU computes for the sake of a plan, some seconds; another batch has fewer rows and layers.
_CPU_FLOPS = 1e12


@dataclasses.dataclass(frozen=True)
class Stage:
    """`count` pieces of work of `flops` each; None for what FLOPs do not tell the time of, with a `note` instead."""

    name: str
    count: int
    flops: float | None
    note: str = ""


def described(stages: Sequence[Stage], speed: Callable[[], float]) -> str:
    """The plan as lines of text; `speed` measures FLOP/s, which it does only if there is something to compute."""
    stages = [stage for stage in stages if stage.count]
    work = sum(stage.count * (stage.flops or 0.0) for stage in stages)
    if not stages:
        return ""
    rate = speed() if work >= WORTH_TIMING else 0.0
    if rate:
        total = (
            f"about {work / rate / 60:,.1f} minutes at {rate / 1e9:,.0f} GFLOP/s, as one batch took here, and compiling"
        )
    else:
        total = "less than a minute, and compiling" if work else "not estimated"
    lines = [f"plan     {total}"]
    for stage in stages:
        shown = stage.note
        if stage.flops is not None and not rate:
            shown = "seconds"
        elif stage.flops is not None:
            each = stage.flops / rate / 60
            times = f"{stage.count} x {each:,.1f} =" if stage.count > 1 else ""
            shown = f"{times:>13} {stage.count * each:8,.1f} min"
        lines.append(f"  {stage.name:<14}{shown:>26}")
    return "\n".join(lines)


def benchmark_stages(evaluation: Evaluation, count: int) -> list[Stage]:
    """A stage for each benchmark, which is run `count` times."""
    found = []
    for name, benchmark in evaluation.benchmarks.items():
        if isinstance(benchmark, Questions):
            flops = _answering(evaluation, name)
        elif isinstance(benchmark, Recall):
            flops = _recalling(benchmark, evaluation.setting)
        else:
            flops = _scoring(benchmark, evaluation.setting) if isinstance(benchmark, PerplexityBenchmark) else None
        found.append(Stage(name, count, flops, "not estimated"))
    return found


def speed(setting: Setting, dtype: str) -> float:
    """FLOP/s of scoring a batch of the longest length with weights of a dtype, which are zeros; compiling excluded."""
    model, length, rows = setting.model, max(setting.lengths), setting.batch
    score = setting.token_nll
    work = rows * scoring_flops(model, length, length)
    if jax.default_backend() == "cpu" and work > _CPU_FLOPS:
        rows = shards(setting.mesh, "rows")
        layers = _CPU_FLOPS / (rows * scoring_flops(model, length, length)) * model.num_layers
        model = dataclasses.replace(model, num_layers=min(max(int(layers), 1), model.num_layers), scan_unroll=1)
        score = make_token_nll(model, setting.chunk, row_sharding(setting.mesh))
        work = rows * scoring_flops(model, length, length)
    shapes = abstract_params(dataclasses.replace(model, param_dtype=dtype))
    zeros = jax.jit(
        lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes),
        out_shardings=param_shardings(model, setting.mesh),
    )()
    tokens, wanted = np.zeros((rows, length), np.int32), np.ones((rows, length), bool)
    seconds = 0.0
    for _ in range(2):  # the first compiles
        began = time.monotonic()
        score(zeros, identity(model.head_dim), tokens, wanted)
        seconds = time.monotonic() - began
    return work / seconds


def _answering(evaluation: Evaluation, name: str) -> float:
    """FLOPs of a benchmark of questions; a new token counts like one of the prompt."""
    setting, size = evaluation.setting, evaluation.setting.generate_batch
    rows = sorted(
        (len(with_bos(setting.tokenizer, sample.prompt)), sample.max_new_tokens)
        for read in evaluation.samples[name]
        for sample in read()
    )
    # A batch costs what its longest row does in all of them.
    batches = (rows[first : first + size] for first in range(0, len(rows), size))
    return sum(size * scoring_flops(setting.model, batch[-1][0] + batch[-1][1], batch[-1][1]) for batch in batches)


def _recalling(benchmark: Recall, setting: Setting) -> float:
    """FLOPs of texts whose ends are scored."""
    assert setting.tokenizer.symbols, "checked"
    asked, lengths = 2 * setting.tokenizer.symbols.keys, benchmark.lengths or setting.lengths
    return benchmark.texts * sum(scoring_flops(setting.model, length, asked) for length in lengths)


def _scoring(benchmark: PerplexityBenchmark, setting: Setting) -> float:
    """FLOPs of a measurement, from a rehearsal that computes nothing."""
    found = 0.0

    class Rehearsal(Setting):
        def token_nll(self, params, rope, tokens, wanted):  # pyright: ignore[reportIncompatibleVariableOverride]
            nonlocal found
            found += len(tokens) * scoring_flops(self.model, tokens.shape[1], scored_columns(wanted))
            return np.zeros(tokens.shape, np.float32)

    fields = {field.name: getattr(setting, field.name) for field in dataclasses.fields(setting)}
    silent = Rehearsal(**fields | {"open_texts": lambda: setting.texts, "progress": lambda description: iter})
    for measure in benchmark.stages(Subject(silent, None, identity(setting.model.head_dim)), {}).values():
        measure()
    return found
