"""python -m experiments.verify --config.model.path=FOLDER --config.engine.name=vllm --config.engine.python=PYTHON

Which scale vector an engine applies to a model, in float32 on both sides.
"""

from configs import defaults


def get_config():
    config = defaults.get_config()
    config.model.dtype = "float32"
    return config
