"""Packaging of rope-jax: `pip install -e .` for running, `pip install -e '.[test]'` for the tests."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="rope-jax",
    version="0.1.0",
    description="Extend the context window of RoPE language models from a distributional perspective, in JAX",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["rope_jax*", "experiments*", "configs*"]),
    package_data={"configs": ["*/config.json"]},
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "numpy>=2.0",
        "absl-py>=2.1",
        "ml-collections>=1.1.0",
        "tensorflow-datasets>=4.9.10",
        "array-record>=0.8.3",
        "grain>=0.2.18",
        "ml_dtypes>=0.5",
        "huggingface_hub>=1.0",
        "safetensors>=0.8.0",
        "transformers>=5.0",
        "tokenizers>=0.22",
        "sentencepiece>=0.2.1",
        "matplotlib>=3.9",
        "tqdm>=4.66",
        "tensorboardX>=2.6.4",
        "PyYAML>=6.0",
    ],
    extras_require={
        # torch is only the tests' reference implementation; this pin has a CPU build of moderate size.
        "test": [
            "pytest>=8.4",
            "pytest-xdist>=3.6",
            "hypothesis>=6.150",
            "ruff>=0.14",
            "torch==2.13.0",
            # What exports are for: adapters in PEFT, GGUF files in llama.cpp itself (wheels of which xllamacpp has).
            "peft>=0.21",
            "gguf>=0.19",
            "xllamacpp>=2026.10",
            "nbclient>=0.11",
            "nbformat>=5.11",
            "ipykernel>=7.4",
            "lm_eval>=0.4.13",
            "rouge==1.0.1",
            "wonderwords>=3.0.1",
        ],
        "cuda": ["jax[cuda13]>=0.10.2"],
        "tpu": ["jax[tpu]>=0.10.2"],
        # The Open LLM tasks run through lm_eval, which needs no torch for its task and scoring code.
        # rouge at this very version, for published scores are its; wonderwords has the words of RULER.
        "eval": ["lm_eval>=0.4.13", "rouge==1.0.1", "wonderwords>=3.0.1"],
        # Preparing PG19 (not reading a prepared copy) needs TensorFlow.
        "pg19": ["tensorflow>=2.18", "importlib_resources>=6"],
        "gguf": ["gguf>=0.19"],
    },
)
