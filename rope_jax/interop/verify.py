"""Whether an export computes elsewhere what it computes here, from its files alone."""

import dataclasses
import gc
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from rope_jax.files import LARGEST_CONFIG, read_json_object
from rope_jax.interop.gguf_files import READS_FACTORS, read_gguf_rope
from rope_jax.interop.hf_config import read_config
from rope_jax.interop.hf_rope import MSCALES
from rope_jax.interop.huggingface import read_model
from rope_jax.interop.model_folder import read_source
from rope_jax.model.llama import Llama, head_kernel, logits
from rope_jax.rope.embedding import ScaleVector
from rope_jax.rope.relative import rebased

# Largest difference of a logit, as a share of the largest logit. float32 sums in another order differ by some 1e-6 per
# product, and some dozen layers let that grow; bfloat16 rounds every product to 8 bits.
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2}

# Logits at the last positions of a sequence are compared: those that depend on all of it.
_LAST = 64


class VerificationError(Exception):
    """An export is not what it should be; the message names the file and what differs."""


def verify_config(folder: Path, rope: ScaleVector) -> None:
    """Checks that a `config.json` gives stock engines this scale vector at all lengths, and nothing on top.

    Of `longrope`, transformers switches between the two lists at the original length. vLLM derives an attention factor
    from the ratio of the maximum to the original length (with equal ones it is 1) unless the file has its own words.
    """
    path = folder / "config.json"
    raw, found = read_json_object(path, LARGEST_CONFIG), read_config(folder).rope
    for what, ours, theirs in (
        ("factors", rope.factors, found.factors),
        ("attention factor", rope.attention_factor, found.attention_factor),
    ):
        if not np.array_equal(ours, theirs):
            raise VerificationError(f"{path}: the {what} is {theirs} where {ours} was to be written")
    scaling = raw.get("rope_scaling") or {"rope_type": "default"}
    if scaling["rope_type"] == "longrope":
        factor = float(rope.attention_factor)
        alike = dict.fromkeys(MSCALES, factor) if factor != 1 else {}
        expected = {"factor": 1.0, "original_max_position_embeddings": raw.get("max_position_embeddings"), **alike}
        for key, value in expected.items():
            if scaling.get(key) != value:
                raise VerificationError(
                    f"{path}: rope_scaling.{key} is {scaling.get(key)!r} where {value!r} is served right"
                )
    if raw.get("rope_parameters") != {**scaling, "rope_theta": raw.get("rope_theta")}:
        raise VerificationError(
            f"{path}: rope_parameters, which transformers 5 reads, is not rope_scaling and rope_theta"
        )
    if "original_max_position_embeddings" in raw:
        raise VerificationError(f"{path}: a top-level original_max_position_embeddings changes the attention factor")


def verify_gguf(file: Path, rope: ScaleVector, *, base: float, context: int) -> None:
    """Checks that a GGUF file has llama.cpp rotate by a scale vector of a rotary base, and nothing on top."""
    found = read_gguf_rope(file)
    if found.factors is not None and found.architecture not in READS_FACTORS:
        raise VerificationError(f"{file}: llama.cpp reads no rope_freqs.weight for a {found.architecture} model")
    expected = np.asarray(rope.factors, np.float32)
    factors = np.ones_like(expected) if found.factors is None else found.factors
    # GGUF keeps the base as float32.
    if np.float32(found.base) != np.float32(base):
        factors = np.asarray(rebased(ScaleVector.create(factors), found.base, base).factors)
        factors = np.where(np.isclose(factors, expected, rtol=4 * np.finfo(np.float32).eps, atol=0), expected, factors)
    for what, ours, theirs in (
        (f"the scale vector of rotary base {base:g}", expected, factors),
        ("the context length", context, found.context),
        ("the attention factor", np.float32(rope.attention_factor), np.float32(found.attention_factor)),
        ("keys for a further scaling", (), found.scaling),
    ):
        if not np.array_equal(ours, theirs):
            raise VerificationError(f"{file}: {what} is {theirs} where {ours} was to be written")


def verify_logits(
    folder: Path, source: Path, rope: ScaleVector, lengths: tuple[int, ...], *, dtype: str = "float32", seed: int = 0
) -> list[dict] | None:
    """Compares logits on random tokens: transformers' of an export, and ours of its source under a scale vector.

    One model is in memory at a time.

    Args:
        folder: exported folder.
        source: folder of the weights before the export.
        rope: scale vector that the export is to have.
        lengths: tokens of each sequence.
        dtype: to load and compute in, a key of `TOLERANCES`.
        seed: seed of the random tokens.

    Returns:
        Per length `length`, `difference` (the largest), `largest` (the largest logit) and `allowed`; None if torch
        is not installed, without which transformers cannot compute.
    """
    try:
        import torch  # noqa: F401
    except ImportError:
        return None
    vocab = read_source(source).config.vocab_size
    generator = np.random.default_rng(seed)
    rows = [generator.integers(0, vocab, (1, length)) for length in lengths]
    ours = _our_logits(source, rope, rows, dtype)
    gc.collect()
    theirs = _transformers_logits(folder, rows, dtype)
    results = []
    for length, a, b in zip(lengths, ours, theirs):
        difference, largest = float(np.abs(a - b).max()), float(np.abs(b).max())
        allowed = TOLERANCES[dtype] * max(largest, 1.0)
        # Not "difference > allowed", which a NaN would pass.
        if not difference <= allowed:
            raise VerificationError(
                f"{folder}: at {length:,} tokens transformers' logits differ by {difference:.3g}, and {allowed:.3g} is "
                f"what {dtype} allows for logits up to {largest:.3g}"
            )
        results.append({"length": length, "difference": difference, "largest": largest, "allowed": allowed})
    return results


def _our_logits(folder, rope, rows, dtype) -> list[np.ndarray]:
    model = read_model(folder, param_dtype=dtype)
    config = dataclasses.replace(model.config, dtype=dtype)

    @jax.jit
    def last(params, tokens):
        hidden = cast(jax.Array, Llama(config).apply({"params": params}, tokens, rope, project=False))[:, -_LAST:]
        return logits(hidden, head_kernel(params, config))

    # By default, GPUs and TPUs multiply float32 matrices in TF32 or bfloat16.
    with jax.default_matmul_precision("highest"):
        return [np.asarray(last(model.params, jnp.asarray(tokens)), np.float32) for tokens in rows]


def _transformers_logits(folder, rows, dtype) -> list[np.ndarray]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), trust_remote_code=False, use_safetensors=True
    )
    with torch.no_grad():
        outputs = [
            model(torch.asarray(tokens), use_cache=False, logits_to_keep=min(_LAST, tokens.shape[1])) for tokens in rows
        ]
    return [output.logits.float().numpy() for output in outputs]
