"""Extends a RoPE language model's context, measures the effect, and exports the result.

python -m experiments.extend                                   # a small model, from nothing, in minutes
python -m experiments.extend --config=configs/llama2_8k.py --config.data.path=/path/to/tfds_data
python -m experiments.extend --config=configs/local.py --config.model.path=MODEL --config.data.path=TEXTS
python -m experiments.extend --config=configs/llama2_16k.py --plan --mesh=fsdp=8    # memory and hours elsewhere
python -m experiments.extend --dry_run                         # checks, and the minutes of each stage here

The procedure: load (or pre-train) a model, solve for the scale vectors, evaluate each, fine-tune each, evaluate again,
export. Interrupted anywhere, the same command resumes from the last finished stage or checkpoint.
"""

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from experiments.door import CONFIGS, run
from rope_jax.cli.extend import command

PLAN = flags.DEFINE_bool(
    "plan", False, "Only report memory, communication and hours of fine-tuning, on any accelerator."
)
MESH = flags.DEFINE_string("mesh", "", "With --plan: devices to plan for, such as data=2,fsdp=4; default config.mesh.")
PROFILE = flags.DEFINE_string("profile", "", "Trace these steps of every training, such as 10:12, into its profile/.")

DEFAULT = CONFIGS / "tiny.py"


def main(config: ConfigDict, folder: Path, name: str) -> None:
    command(
        config,
        folder,
        name,
        dry_run=flags.FLAGS.dry_run,
        plan=PLAN.value,
        mesh=MESH.value,
        profile=PROFILE.value,
    )


if __name__ == "__main__":
    run(main, DEFAULT, several=True, dry_run=True)
