"""python -m experiments.extend --config=configs/local.py --config.model.path=MODEL --config.data.path=TEXTS

Any Hugging Face LLaMA folder and any folder of .txt or .jsonl files: twice the context in a short fine-tune.
"""

from rope_jax.cli.config import start


def get_config():
    return start("extend")
