"""Passkey retrieval as samples, like any other benchmark."""

from __future__ import annotations

from rope_jax.data.tokenizer import Tokenizer
from rope_jax.evaluation.passkey import found_number, make_prompts, prompt_text
from rope_jax.evaluation.sample import Sample

TASK = "passkey"


def passkey_samples(
    tokenizer: Tokenizer, length: int, trials: int, seed: int, depth_bins: int = 10, max_new_tokens: int = 10
) -> list[Sample]:
    """The trials of `rope_jax.evaluation.passkey.passkey` at a length.

    Args:
        tokenizer: see `make_prompts`, like all that follows.
        length: tokens that prompt, here BOS included, and answer may take together.
        trials: number of samples.
        seed: of keys and depths.
        depth_bins: strata of depth.
        max_new_tokens: tokens of the answer.

    Returns:
        The samples; `details` holds the `depth` and the prompt's `prompt_tokens`.

    Raises:
        InputError: if the smallest prompt does not fit.
    """
    prompts = make_prompts(tokenizer, length, trials, seed, depth_bins=depth_bins, max_new_tokens=max_new_tokens)
    return [
        Sample(
            id=f"{TASK}/{length}/{index}",
            task=TASK,
            prompt=prompt_text(prompt.key, prompt.n_garbage, prompt.depth),
            references=(str(prompt.key),),
            max_new_tokens=max_new_tokens,
            length=length,
            details={"depth": prompt.depth, "prompt_tokens": len(prompt.tokens)},
        )
        for index, prompt in enumerate(prompts)
    ]


def passkey_score(sample: Sample, prediction: str) -> float:
    """1 if the first number in a prediction is the key, else 0."""
    return float(found_number(prediction) == sample.references[0])
