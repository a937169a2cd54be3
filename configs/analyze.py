"""python -m experiments.analyze --config.model.path=MODEL

The angles of any model at twice its context.
"""

from rope_jax.cli.config import start


def get_config():
    return start("analyze")
