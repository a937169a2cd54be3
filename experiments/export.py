"""Exports a model with another scale vector, for transformers, vLLM and llama.cpp.

python -m experiments.export --config.model.path=MODEL --config.context.target=8192 --workdir=OUT     # no training
python -m experiments.export --config.export.run=runs/local --config.export.formats="('hf','gguf')" --workdir=OUT

Without a run, a method (`config.rope.method`) gives the vector, and the weights are the model's own. `OUT/export` is a
Hugging Face folder; `OUT/model.gguf`, its card beside it, is for llama.cpp; `OUT/adapter` is a PEFT adapter on
`OUT/base`. `--config.verify=True` loads what was written and compares.
"""

from experiments.door import CONFIGS, run
from rope_jax.cli.export import export

DEFAULT = CONFIGS / "export.py"

if __name__ == "__main__":
    run(export, DEFAULT)
