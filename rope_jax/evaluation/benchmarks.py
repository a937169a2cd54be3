"""The table of benchmarks."""

from collections.abc import Mapping

from rope_jax.evaluation.babilong.benchmark import BabiLong
from rope_jax.evaluation.benchmark import Benchmark
from rope_jax.evaluation.key_value import KeyValue
from rope_jax.evaluation.leaderboard.benchmark import Leaderboard
from rope_jax.evaluation.longbench.benchmark import LongBench
from rope_jax.evaluation.longppl.benchmark import LongPpl
from rope_jax.evaluation.many_shot import ManyShot
from rope_jax.evaluation.passkey import Passkey
from rope_jax.evaluation.perplexity.benchmark import PerplexityBenchmark
from rope_jax.evaluation.recall import Recall
from rope_jax.evaluation.ruler.benchmark import Ruler

BENCHMARKS: Mapping[str, type[Benchmark]] = {
    "perplexity": PerplexityBenchmark,
    "longppl": LongPpl,
    "leaderboard": Leaderboard,
    "passkey": Passkey,
    "recall": Recall,
    "longbench_e": LongBench,
    "ruler": Ruler,
    "key_value": KeyValue,
    "many_shot": ManyShot,
    "babilong": BabiLong,
}
