"""python -m experiments.evaluate --config=configs/eval.py --config.model.path=MODEL --config.suite=perplexity,passkey

Any Hugging Face folder, hub name or run of experiments.extend, as its config says; `--config.rope.method` and
`--config.compare` put other scale vectors on it.
"""

from configs import defaults


def get_config():
    config = defaults.get_config()
    config.model.param_dtype = "auto"
    config.rope.method = "own"
    config.context.target = 0  # the model's context; with a method twice that
    config.eval.split = "test"
    return config
