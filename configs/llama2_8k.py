"""python -m experiments.extend --config=configs/llama2_8k.py --config.data.path=/path/to/tfds_data

LLaMA2-7B from 4k to 8k as in the paper: 1000 steps of 64 sequences of 8192 tokens of PG19.
`--config.model.path` is a local folder or a hub id.
"""

from pathlib import Path

from configs import defaults


def get_config():
    config = defaults.get_config()
    config.model.path = "meta-llama/Llama-2-7b-hf"
    config.plan.model = str(Path(__file__).with_name("llama2_7b"))
    config.rope.base = 10000.0
    config.rope.head_dim = 128
    config.context.original = 4096
    config.context.target = 8192
    config.solve.n_hat = 80
    config.data.name = "pg19"
    config.train.steps = 1000
    return config
