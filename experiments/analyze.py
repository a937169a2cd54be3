"""Angle distributions and their disturbance under every method, from a config alone: no weights, in seconds.

python -m experiments.analyze --config.model.path=MODEL
python -m experiments.analyze --config=configs/llama2_8k.py
python -m experiments.analyze --config=configs/llama2_16k.py --sweep
python -m experiments.analyze --usage --config.model.path=MODEL --config.data.path=TEXTS

Prints a table and writes `analysis.json` and the paper's figures 1, 3, 6, 7 and 8 under `--workdir`; `--sweep` adds
the paper's ablations over interpolated dimensions and intervals, and lengths up to a million tokens. `--usage` reads
the weights of a model and writes `usage.json`, which `config.solve.energy` and `config.solve.distances` take.
"""

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.door import CONFIGS, run
from rope_jax.cli.analyze import command

DEFAULT = CONFIGS / "analyze.py"
SWEEP = flags.DEFINE_bool("sweep", False, "Also sweep interpolated dimensions, intervals and lengths.")
USAGE = flags.DEFINE_bool("usage", False, "Measure how a model uses pairs and distances, instead.")


def main(config: ConfigDict, folder: Path, name: str) -> None:
    typed = config_flags.get_override_values(flags.FLAGS["config"])
    command(config, folder, name, named=bool(typed.get("model.path")), sweep=SWEEP.value, usage=USAGE.value)


if __name__ == "__main__":
    run(main, DEFAULT)
