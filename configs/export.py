"""python -m experiments.export --config.model.path=MODEL --config.verify=True --workdir=OUT

Twice the context of any Hugging Face LLaMA in one command, without training. `--config.export.run=runs/NAME` exports a
run of experiments.extend instead.
"""

from rope_jax.cli.config import start


def get_config():
    return start("export")
