"""Evaluates a model on the paper's benchmarks and stronger ones, under one scale vector or several.

python -m experiments.evaluate --config.model.path=MODEL --config.suite=passkey,key_value
python -m experiments.evaluate --config.model.path=runs/tiny --config.suite=perplexity --config.data.path=TEXTS
python -m experiments.evaluate --score DIR --workdir OUT      # LongBench-E's prediction files, without a model

MODEL is a Hugging Face folder or hub id, or the folder of a run of experiments.extend. Every prediction is kept as it
is made: interrupted anywhere, the same command resumes, and later ones may add suites and methods. The workdir then
holds `report.html`, `results.json` with every number, and `predictions/`.
"""

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from experiments.door import CONFIGS, run
from rope_jax.cli.evaluate import command

DEFAULT = CONFIGS / "eval.py"
SCORE = flags.DEFINE_string("score", "", "Folder of LongBench-E prediction files to score; no model is read.")


def main(config: ConfigDict, folder: Path, name: str) -> None:
    command(config, folder, name, dry_run=flags.FLAGS.dry_run, score=SCORE.value)


if __name__ == "__main__":
    run(main, DEFAULT, dry_run=True)
