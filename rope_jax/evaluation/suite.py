"""What a run measures of a model before and after fine-tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from jax.sharding import Mesh

from rope_jax.data.tokenizer import Tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.nll import make_token_nll
from rope_jax.evaluation.passkey import make_prompts, passkey
from rope_jax.evaluation.perplexity import perplexity, perplexity_by_position, position_edges
from rope_jax.model.config import LlamaConfig
from rope_jax.model.generate import greedy
from rope_jax.sharding import cache_sharding, row_sharding


@dataclasses.dataclass(frozen=True)
class SuiteConfig:
    """What is measured.

    Attributes:
        original: pre-training context, tokens.
        target: extended context, tokens.
        stride: of the sliding window, tokens; a window shorter than twice that uses half its length.
        batch: windows scored together over all devices.
        loss_chunk: tokens of a row projected to the vocabulary at a time.
        passkey_lengths: tokens of passkey prompt and answer.
        passkey_trials: trials per length.
        passkey_depths: strata of depth.
        passkey_new_tokens: tokens generated.
        passkey_batch: prompts decoded together.
        seed: of trials and bootstrap.
    """

    original: int
    target: int
    stride: int
    batch: int
    loss_chunk: int
    passkey_lengths: tuple[int, ...]
    passkey_trials: int
    passkey_depths: int
    passkey_new_tokens: int
    passkey_batch: int
    seed: int


@dataclasses.dataclass(frozen=True)
class EvaluationTexts:
    """Documents to measure on.

    Attributes:
        sliding: token ids of the documents for sliding-window perplexity.
        sliding_bytes: their UTF-8 bytes.
        position: token ids of the documents for perplexity by position.
    """

    sliding: Sequence[np.ndarray]
    sliding_bytes: Sequence[int]
    position: Sequence[np.ndarray]


def check_suite(suite: SuiteConfig, tokenizer: Tokenizer, texts: EvaluationTexts) -> None:
    """Checks, before anything runs, that everything can be measured in the end.

    Args:
        suite: what is measured.
        tokenizer: the model's.
        texts: documents to measure on.

    Raises:
        InputError: naming the config field and the fix.
    """
    for field in ("stride", "batch", "passkey_depths", "passkey_new_tokens", "passkey_batch"):
        if getattr(suite, field) < 1:
            raise InputError(f"config.eval.{field} is {getattr(suite, field)}: it must be at least 1")
    longest = max((len(document) for document in texts.position), default=0)
    if longest + (tokenizer.bos_id is not None) < suite.target:
        raise InputError(
            f"config.eval.split has no document that fills a window of context.target = {suite.target} tokens: the "
            f"longest has {longest}. Name longer texts in config.data.path, or raise config.eval.document_tokens and "
            "config.eval.position_tokens if they cut them"
        )
    for length in suite.passkey_lengths:
        make_prompts(
            tokenizer,
            length,
            suite.passkey_trials,
            suite.seed,
            depth_bins=suite.passkey_depths,
            max_new_tokens=suite.passkey_new_tokens,
        )


def make_evaluate(
    config: LlamaConfig,
    suite: SuiteConfig,
    tokenizer: Tokenizer,
    texts: EvaluationTexts,
    mesh: Mesh,
    progress: Callable[[str], Callable[[Iterable], Iterable]],
) -> Callable[..., dict]:
    """Prepares the measurement; the compiled parts serve every scale vector and every set of parameters.

    Args:
        config: model config.
        suite: what is measured.
        tokenizer: the model's.
        texts: documents to measure on.
        mesh: parameters' mesh; windows are spread over its `data`, `fsdp` and `context`.
        progress: from a description to a wrapper of an iterable, for instance a `tqdm`.

    Returns:
        `evaluate(params, rope)`, which gives a JSON-able dictionary: `perplexity` at the original and the
        target window, `by_position`, and `passkey` (None if no lengths are asked for).
    """
    rows = row_sharding(mesh)
    token_nll = make_token_nll(config, suite.loss_chunk, rows)

    def evaluate(params, rope) -> dict:
        score = partial(token_nll, params, rope)
        common = {"bos_id": tokenizer.bos_id, "batch_size": suite.batch, "seed": suite.seed}
        by_window = {
            str(window): dataclasses.asdict(
                perplexity(
                    score,
                    texts.sliding,
                    window,
                    min(suite.stride, window // 2),
                    document_bytes=texts.sliding_bytes,
                    progress=progress(f"perplexity at {window}"),
                    **common,
                )
            )
            for window in (suite.original, suite.target)
        }
        by_position = perplexity_by_position(
            score,
            texts.position,
            suite.target,
            edges=position_edges(suite.target, suite.original),
            progress=progress("perplexity by position"),
            **common,
        )
        retrieved = None
        if suite.passkey_lengths:

            def generate(prompts):
                return greedy(
                    params,
                    config,
                    rope,
                    prompts,
                    suite.passkey_new_tokens,
                    batch_size=suite.passkey_batch,
                    cache_sharding=cache_sharding(mesh),
                )

            result = passkey(
                generate,
                tokenizer,
                suite.passkey_lengths,
                suite.passkey_trials,
                suite.seed,
                depth_bins=suite.passkey_depths,
                max_new_tokens=suite.passkey_new_tokens,
                progress=progress("passkey"),
            )
            retrieved = dataclasses.asdict(result)
        return {
            "perplexity": by_window,
            "by_position": dataclasses.asdict(by_position),
            "passkey": retrieved,
        }

    return evaluate
