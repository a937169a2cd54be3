"""python -m experiments.analyze --config.model.path=MODEL

The angles of any model at twice its context.
"""

from configs import defaults


def get_config():
    config = defaults.get_config()
    config.context.target = 0  # twice the original
    return config
