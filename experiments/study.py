"""What a scale vector does to a model, and whether the disturbance tells it: small models, trained and extended here.

python -m experiments.study --config.data.path=TEXTS
python -m experiments.study --config.data.path=TEXTS --quick
python -m experiments.study --table=results/study.jsonl --workdir=results    # the page, from a table, in seconds

Interrupted anywhere, the same command resumes from the last record or checkpoint. `table.jsonl` has every measurement,
`report.md` the analysis.
"""

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from experiments.door import CONFIGS, run
from rope_jax.cli.config import change
from rope_jax.cli.starts import QUICK as SMALL
from rope_jax.cli.study import command

QUICK = flags.DEFINE_bool("quick", False, "The same study in small, into the folder `quick` of --workdir.")
TABLE = flags.DEFINE_string("table", "", "A table.jsonl to write the page of; nothing is computed.")

DEFAULT = CONFIGS / "study.py"


def main(config: ConfigDict, folder: Path, name: str) -> None:
    if QUICK.value:
        change(config, SMALL["study"])
    command(config, folder, name, quick=QUICK.value, table=TABLE.value)


if __name__ == "__main__":
    run(main, DEFAULT)
