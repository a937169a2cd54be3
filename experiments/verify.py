"""Which scale vector a serving engine applies to a model, read back from its log probabilities.

python -m experiments.verify --config.model.path=FOLDER --config.engine.name=transformers
python -m experiments.verify --config.model.path=FOLDER --config.engine.name=vllm --config.engine.python=ENV/bin/python
python -m experiments.verify --config.model.path=FILE.gguf --config.engine.name=llama.cpp

The folder may be any that this package reads, scaled by it or not. The engine runs in an environment of its own, which
needs nothing of this package. Exit status 1: it applies another vector than the model's config says, or an unknown one.
"""

from experiments.door import CONFIGS, run
from rope_jax.cli.verify import verify

DEFAULT = CONFIGS / "verify.py"

if __name__ == "__main__":
    run(verify, DEFAULT)
