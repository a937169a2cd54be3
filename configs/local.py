"""python -m experiments.extend --config=configs/local.py --config.model.path=MODEL --config.data.path=TEXTS

Any Hugging Face LLaMA folder and any folder of .txt or .jsonl files: twice the context in a short fine-tune.
"""

from configs import defaults


def get_config():
    config = defaults.get_config()
    config.compare = ("extrapolation", "pi", "yarn")
    config.context.target = 0  # twice the original
    config.train.steps = 100
    config.train.global_batch = 8
    config.train.accumulation = 1
    config.train.checkpoint_every = 50
    config.eval.max_tokens = 100_000
    config.eval.position_tokens = 100_000
    config.eval.document_tokens = 20_000
    return config
