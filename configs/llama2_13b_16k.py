"""python -m experiments.extend --config=configs/llama2_13b_16k.py --config.data.path=/path/to/tfds_data

LLaMA2-13B from 4k to 16k with the paper's recipe, which is that of the 7B.
"""

from pathlib import Path

from configs import llama2_16k


def get_config():
    config = llama2_16k.get_config()
    config.model.path = "meta-llama/Llama-2-13b-hf"
    config.plan.model = str(Path(__file__).with_name("llama2_13b"))
    return config
