"""LongPPL: perplexity over the tokens that need a long context (Fang et al., arXiv 2410.23771).

A token is a key token if one fixed model, the evaluator, predicts it well from all that is before it, and much worse
from a short context. The evaluated model's perplexity over the key tokens tells how well it uses long contexts,
which its perplexity over all tokens hardly does. Models enter as functions from tokens to NLLs.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from rope_jax.data.tokenizer import Tokenizer
from rope_jax.evaluation.intervals import bootstrap_interval

# From int32 tokens [n] to float [n - 1]: at i the NLL in nats of tokens[i + 1] after tokens[: i + 1].
TokenNll = Callable[[np.ndarray], np.ndarray]

GAIN = 2.0
CEILING = 2.0

_OVERLAP = 16  # Tokens before a stretch of tokens that are decoded with it.


@dataclasses.dataclass(frozen=True)
class LongPerplexity:
    """LongPPL of a model over documents.

    `long_perplexity` is exp of the mean NLL of key tokens, None without any; `interval` its 95% bootstrap interval over
    documents, None for fewer than two with key tokens; `perplexity` exp of the mean NLL of all tokens. `by_document`
    holds the summed NLL of key tokens and their number in each document.
    """

    long_perplexity: float | None
    interval: tuple[float, float] | None
    perplexity: float
    key_tokens: int
    tokens: int
    documents: int
    by_document: tuple[tuple[float, float], ...]


def is_key(full_nll: np.ndarray, short_nll: np.ndarray, gain: float = GAIN, ceiling: float = CEILING) -> np.ndarray:
    """Which tokens need a long context: `short - full > gain` and `full < ceiling`, of NLLs in nats, float `[n]`.

    The short context's is NaN where it would be the full one; no token is a key there.
    """
    full_nll, short_nll = np.asarray(full_nll, np.float64), np.asarray(short_nll, np.float64)
    return (short_nll - full_nll > gain) & (full_nll < ceiling)


def short_context_nll(
    nll: TokenNll, tokens: np.ndarray, bos_id: int | None, context: int = 4096, stride: int = 1024
) -> np.ndarray:
    """NLL of each token from a short context, float64 `[n]`; NaN for the first `context` tokens.

    The document, int32 `[n]` without BOS, is cut into windows of `context + stride` tokens, `stride` apart, of which
    each scores the tokens beyond its first `context` ones; so a token has between `context` and `context + stride - 1`
    tokens before it. A BOS goes in front of every window, which a model trained with it needs to predict anything;
    LongPPL's own code has it in front of the first one only.
    """
    tokens = np.asarray(tokens, np.int32)
    short = np.full(len(tokens), np.nan)
    for start in range(0, len(tokens) - context, stride):
        end = min(start + context + stride, len(tokens))
        short[start + context : end] = full_context_nll(nll, tokens[start:end], bos_id)[context:]
    return short


def full_context_nll(nll: TokenNll, tokens: np.ndarray, bos_id: int | None) -> np.ndarray:
    """NLL of each token from all before it and BOS, float64 `[n]`; NaN for a first token without BOS in front."""
    tokens = np.asarray(tokens, np.int32)
    if bos_id is None:
        return np.concatenate([[np.nan], np.asarray(nll(tokens), np.float64)])[: len(tokens)]
    return np.asarray(nll(np.concatenate([[np.int32(bos_id)], tokens])), np.float64)


def key_tokens(
    nll: TokenNll, tokens: np.ndarray, bos_id: int | None, context: int = 4096, stride: int = 1024
) -> np.ndarray:
    """The key tokens of a document without BOS, in the evaluator's tokens, under the evaluator: bool `[n]`."""
    return is_key(full_context_nll(nll, tokens, bos_id), short_context_nll(nll, tokens, bos_id, context, stride))


def long_perplexity(nlls: Sequence[np.ndarray], keys: Sequence[np.ndarray], seed: int = 0) -> LongPerplexity:
    """LongPPL over documents, every key token with the same weight.

    Of each document: the NLL of each token in nats from all before it, float `[n]`, NaN for none, and its keys, bool
    `[n]`.
    """
    scored = [~np.isnan(nll) for nll in nlls]
    chosen = [np.asarray(key, bool) & here for key, here in zip(keys, scored)]
    counts = np.array([key.sum() for key in chosen], np.float64)
    sums = np.array([np.asarray(nll, np.float64)[key].sum() for nll, key in zip(nlls, chosen)])
    total = sum(float(np.asarray(nll, np.float64)[here].sum()) for nll, here in zip(nlls, scored))
    tokens = int(sum(here.sum() for here in scored))
    holding = counts > 0
    # Documents without key tokens say nothing of LongPPL, and a resample of them alone would be 0 / 0.
    interval = bootstrap_interval(sums[holding], counts[holding], seed)
    return LongPerplexity(
        long_perplexity=float(np.exp(sums.sum() / counts.sum())) if counts.sum() else None,
        interval=interval and (float(np.exp(interval[0])), float(np.exp(interval[1]))),
        perplexity=float(np.exp(total / tokens)) if tokens else float("nan"),
        key_tokens=int(counts.sum()),
        tokens=tokens,
        documents=len(nlls),
        by_document=tuple(zip(sums.tolist(), counts.tolist())),
    )


def token_ends(tokenizer: Tokenizer, tokens: np.ndarray) -> np.ndarray:
    """Where each token's text ends in the text of all, in characters: int64 `[n]`, ascending.

    A character that takes several tokens ends with the first of them.
    """
    ends = np.zeros(len(tokens), np.int64)
    first, before, offset = 0, 0, 0  # Of the stretch that is decoded together, and characters decoded before it.
    for i in range(len(tokens)):
        text = tokenizer.decode(tokens[first : i + 1])
        ends[i] = offset + len(text) - before
        # A stretch must not begin within a character, nor with a token whose blank would be lost as a first one.
        if i + 1 - first >= 2 * _OVERLAP and not text.endswith("\ufffd"):
            first, offset = i + 1 - _OVERLAP, int(ends[i])
            before = len(tokenizer.decode(tokens[first : i + 1]))
    # Bytes of an unfinished character are shown as one character each, until it is finished.
    return np.minimum.accumulate(ends[::-1])[::-1]


def transfer_keys(keys: np.ndarray, from_ends: np.ndarray, to_ends: np.ndarray) -> np.ndarray:
    """Key tokens, bool `[m]`, in another tokenizer's tokens of the same text: those whose characters all belong to
    keys.

    `from_ends` and `to_ends` say where the evaluator's and the other tokens end in the text.
    """
    from_ends, to_ends = np.asarray(from_ends), np.asarray(to_ends)
    length = int(max(from_ends.max(initial=0), to_ends.max(initial=0)))
    is_key_character = np.zeros(length, bool)
    for start, end in zip(np.concatenate([[0], from_ends])[:-1][keys], from_ends[keys]):
        is_key_character[start:end] = True
    within = np.concatenate([[0], np.cumsum(is_key_character)])
    starts = np.concatenate([[0], to_ends])[:-1]
    return (to_ends > starts) & (within[to_ends] - within[starts] == to_ends - starts)
