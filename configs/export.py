"""python -m experiments.export --config.model.path=MODEL --config.verify=True --workdir=OUT

Twice the context of any Hugging Face LLaMA in one command, without training. `--config.export.run=runs/NAME` exports a
run of experiments.extend instead.
"""

from configs import defaults


def get_config():
    config = defaults.get_config()
    config.context.target = 0  # twice the original
    return config
