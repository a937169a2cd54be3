"""A scale vector in the words of `config.json`: the engines' own where the vector is exactly that.

Engines implement some of these words and not others (docs/export.md), so the plainest that says the vector is written.
Which one does is decided from the vector: a word is taken if reading it gives the same float32 numbers.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from rope_jax.errors import InputError
from rope_jax.files import Fields
from rope_jax.interop.hf_rope import MSCALES, scale_of
from rope_jax.rope.embedding import ScaleVector
from rope_jax.rope.methods.by_parts import yarn_attention_factor
from rope_jax.rope.relative import STANDSTILL, rebased


def describe_rope(
    scale: ScaleVector, base: float, *, context: int, originals: tuple[int, ...], own: Mapping | None = None
) -> tuple[float, dict | None]:
    """Describes a scale vector for every release of transformers, and for engines that read its files.

    The rotary base alone (the model's, or another one) is preferred to `linear`, `proportional`, `llama3`, `yarn` and
    the source's own words, and those to `longrope`, which holds any vector: with equal short and long lists (LLaMA in
    transformers keeps its KV cache across the switch, so unequal lists would corrupt generation) and an original length
    equal to the maximum, from which engines that derive their own attention factor derive 1. Its attention factor
    stands beside it under the names of transformers, and of vLLM and SGLang.

    Args:
        scale: factors ``[D/2]`` relative to `base`.
        context: extended context, tokens.
        originals: contexts that the model may have been trained with, tokens.
        own: the block that the source's config has.

    Returns:
        The rotary base to write, and the block without it; None for plain rotation.
    """
    factors, attention_factor = np.asarray(scale.factors), float(scale.attention_factor)
    if attention_factor == 1 and (raised := rotary_base(factors, base)) is not None:
        return raised, None
    for block in _words(scale, context, originals, own):
        original = block.get("original_max_position_embeddings", context)
        try:
            found = scale_of(Fields(Path("config.json"), block), base, 2 * len(factors), context, original)
        except InputError:
            continue
        if _same(found, scale):
            return base, block
    numbers = [float(factor) for factor in factors]
    block = {
        "rope_type": "longrope",
        "short_factor": numbers,
        "long_factor": numbers,
        "attention_factor": attention_factor,
        "factor": 1.0,
        "original_max_position_embeddings": context,
    }
    return base, block | (dict.fromkeys(MSCALES, attention_factor) if attention_factor != 1 else {})


def _words(scale: ScaleVector, context: int, originals: tuple[int, ...], own: Mapping | None) -> Iterator[dict]:
    """Blocks that may say the vector, from the plainest."""
    factors, attention_factor = np.asarray(scale.factors), float(scale.attention_factor)
    # The shortest decimals that are this float32.
    first = float(str(factors[0]))
    rotating = int((factors < STANDSTILL).sum())
    if rotating == len(factors):
        yield {"rope_type": "linear", "factor": first}
    else:
        share = rotating / len(factors)
        if int(share * 2 * len(factors) // 2) < rotating:  # the product is rounded
            share = float(np.nextafter(share, 1))
        scaled = {"factor": first} if rotating and first != 1 else {}
        yield {"rope_type": "proportional", "partial_rotary_factor": share, **scaled}
    for original in originals:
        # A served length that is not the product of the two makes transformers warn and vLLM take the product.
        block = {"factor": context / original, "original_max_position_embeddings": original}
        yield {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **block}
        # vLLM derives YaRN's own attention factor, and reads no other.
        if context >= original and np.float32(yarn_attention_factor(context / original)) == attention_factor:
            yield {"rope_type": "yarn", **block, "attention_factor": attention_factor}
    if own and own["rope_type"] != "longrope":
        yield dict(own)


def rotary_base(factors: np.ndarray, base: float) -> float | None:
    """The rotary base whose frequencies are those of `base` over factors, float32 ``[D/2]``; None if there is none."""
    if np.all(factors == 1):
        return base
    # Each factor is (base'/base)^(2i/D), rounded: base' lies where all of their intervals meet.
    shares = np.arange(1, len(factors)) / len(factors)
    middle, half = factors[1:].astype(np.float64), np.spacing(factors[1:]).astype(np.float64) / 2
    with np.errstate(over="ignore"):
        low, high = (base * (middle + side) ** (1 / shares) for side in (-half, half))
    if factors[0] != 1 or not len(shares) or not 1 < low.max() <= high.min() < np.inf:
        return None
    centre = (low.max() + high.min()) / 2
    for digits in range(1, 18):
        raised = float(f"{centre:.{digits}g}")
        if low.max() <= raised <= high.min() and _same(
            rebased(ScaleVector.create(np.ones_like(factors)), raised, base), ScaleVector.create(factors)
        ):
            return raised
    return None


def _same(one: ScaleVector, other: ScaleVector) -> bool:
    return np.array_equal(one.factors, other.factors) and float(one.attention_factor) == float(other.attention_factor)
