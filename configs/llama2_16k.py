"""python -m experiments.extend --config=configs/llama2_16k.py --config.data.path=/path/to/tfds_data

LLaMA2-7B from 4k to 16k as in the paper: 500 steps of 64 sequences of 16384 tokens of PG19.
"""

from configs import llama2_8k


def get_config():
    config = llama2_8k.get_config()
    config.context.target = 16384
    config.solve.n_hat = 64
    config.train.steps = 500
    return config
