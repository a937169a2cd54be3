"""Random tiny models made by transformers, and what transformers computes with a folder."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import numpy as np
import torch
import transformers


def write_random_llama(
    folder: Path, dtype=torch.float32, shard="5GB", seed=0, architecture="llama", **overrides
) -> Path:
    """Saves a random LLaMA, or a model of another architecture, with transformers' own code.

    Args:
        folder: folder to create.
        dtype: of the tensors.
        shard: most bytes per file, as transformers takes it.
        seed: seed of the weights.
        architecture: transformers' `model_type`.
        **overrides: fields of its config class.

    Returns:
        `folder`.
    """
    # Weights ten times the usual size, so that attention is far from uniform and a wrong rotation shows.
    sizes = {
        "vocab_size": 96,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    torch.manual_seed(seed)
    with quiet_transformers():
        config = transformers.AutoConfig.for_model(architecture, **(sizes | overrides))
        model = transformers.AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if "norm" in name:  # ones, which would hide norms that are swapped
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
            if name.endswith("bias"):  # zeros
                torch.nn.init.normal_(parameter)
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def reference_logits(folder: Path, tokens: np.ndarray, dtype=torch.float32) -> np.ndarray:
    """What transformers computes; it must load the folder without a word and use every tensor.

    It does not know the words for an attention factor that are meant for vLLM.

    Args:
        folder: model folder.
        tokens: int `[B, T]`.
        dtype: to load and compute in.

    Returns:
        float32 `[B, T, V]`.
    """
    transformers.utils.logging.warning_once.cache_clear()
    with transformers_messages() as messages:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
        )
        with torch.no_grad():
            logits = model(torch.asarray(np.asarray(tokens, np.int64)), use_cache=False).logits
    assert [message for message in messages if "_mscale" not in message] == []
    assert not any(info.values()), info
    return logits.float().numpy()


@contextlib.contextmanager
def transformers_messages():
    """Collects what transformers logs at WARNING and above."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("transformers")
    with quiet_transformers():
        logger.addHandler(handler)
        try:
            yield messages
        finally:
            logger.removeHandler(handler)


@contextlib.contextmanager
def quiet_transformers():
    """No progress bars on the tests' output."""
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.utils.logging.enable_progress_bar()
