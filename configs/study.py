"""python -m experiments.study --config.data.path=TEXTS

Whether the disturbance tells a good scale vector: small models trained on texts mixed with synthetic recall, extended
by every method, before and after a short fine-tuning. `--quick` writes the same pages from one small model.
"""

from rope_jax.cli.config import start


def get_config():
    return start("study")
