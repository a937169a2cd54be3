"""python -m experiments.verify --config.model.path=FOLDER --config.engine.name=vllm --config.engine.python=PYTHON

Which scale vector an engine applies to a model, in float32 on both sides.
"""

from rope_jax.cli.config import start


def get_config():
    return start("verify")
