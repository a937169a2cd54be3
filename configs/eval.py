"""python -m experiments.evaluate --config=configs/eval.py --config.model.path=MODEL --config.suite=perplexity,passkey

Any Hugging Face folder, hub name or run of experiments.extend, as its config says; `--config.rope.method` and
`--config.compare` put other scale vectors on it.
"""

from rope_jax.cli.config import start


def get_config():
    return start("evaluate")
