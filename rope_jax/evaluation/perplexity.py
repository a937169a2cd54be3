"""Perplexity of long documents: over a sliding window, and as a function of position in the window.

Every function takes a `token_nll_fn(tokens int32 [B, T], wanted bool [B, T]) -> float32 [B, T]` that gives at
`[b, t]` the NLL in nats of `tokens[b, t + 1]` after `tokens[b, : t + 1]` where that is wanted (see
`rope_jax.evaluation.nll`), and documents as int arrays without special tokens. Batches have one shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from rope_jax.errors import InputError
from rope_jax.evaluation.intervals import bootstrap_ratios, percentile_interval

# Words in the test split of PG19, by which its own word-level perplexity divides (arXiv 1911.05507).
PG19_TEST_WORDS = 6_966_499

CONVENTIONS = ("token", "yarn", "longlora")


class Window(NamedTuple):
    """One window on a document: it holds tokens `start .. end - 1` and scores `first_scored .. end - 1`."""

    start: int
    end: int
    first_scored: int


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """A perplexity and all that is needed to read it.

    Attributes:
        convention: how NLLs were averaged, see `perplexity`.
        perplexity: its value.
        interval: 95% bootstrap interval over documents; None for a single document, which has no spread.
        nll: sum of the NLL of scored tokens, nats.
        tokens: scored tokens; with convention "longlora" a token counts once per window that holds it.
        windows: windows scored.
        documents: documents with a scored token.
        window: longest input to the model, tokens, BOS included.
        stride: tokens between windows.
        bits_per_byte: NLL per byte of scored text in bits, if its bytes were given; comparable between
            tokenizers. None with "longlora", which scores tokens repeatedly.
        word_perplexity: exp(NLL / words), if words were given; None with "longlora".
    """

    convention: str
    perplexity: float
    interval: tuple[float, float] | None
    nll: float
    tokens: int
    windows: int
    documents: int
    window: int
    stride: int
    bits_per_byte: float | None
    word_perplexity: float | None


@dataclasses.dataclass(frozen=True)
class PositionBucket:
    """Perplexity of the tokens at positions `start .. end - 1` of their window.

    A token's position is its index in the model's input, hence the number of tokens it is predicted from.

    Attributes:
        start: first position.
        end: one past the last position.
        tokens: scored tokens.
        nll: their mean NLL, nats.
        perplexity: exp(nll).
        standard_error: of `nll`, by bootstrap over windows; None for a single window.
        interval: 95% bootstrap interval of `perplexity` over windows; None for a single window.
    """

    start: int
    end: int
    tokens: int
    nll: float
    perplexity: float
    standard_error: float | None
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class PositionPerplexity:
    """Perplexity as a function of position, every bucket over the same windows.

    Attributes:
        window: tokens of a window, BOS included.
        windows: windows scored.
        documents: documents that had at least one full window.
        buckets: in order of position; they tile 1 .. window - 1.
    """

    window: int
    windows: int
    documents: int
    buckets: tuple[PositionBucket, ...]


def sliding_windows(n_tokens: int, window: int, stride: int, full_last: bool = True) -> list[Window]:
    """Windows that score every token of a document exactly once.

    The first window scores all its tokens, each later one only those beyond the window before it: `stride` of
    them, or what is left for the last. A document shorter than the window is one window.

    Args:
        n_tokens: tokens of the document, BOS not counted.
        window: document tokens that a window holds at most.
        stride: tokens that each later window scores, 1 .. window.
        full_last: True moves the last window back so that it is full, hence every scored token has as much
            left context as the windows allow; False starts it a stride after the one before, so it is short.

    Returns:
        The windows in order; none for an empty document.

    Raises:
        InputError: if the stride is not within 1 .. window.
    """
    if not 1 <= stride <= window:
        raise InputError(
            f"eval.stride is {stride} and a window holds {window} document tokens: the stride must be at "
            "least 1 and must not skip tokens"
        )
    windows = []
    start, scored = 0, 0
    while scored < n_tokens:
        end = min(start + window, n_tokens)
        windows.append(Window(max(0, end - window) if full_last else start, end, scored))
        start, scored = start + stride, end
    return windows


def perplexity(
    token_nll_fn: Callable[[np.ndarray, np.ndarray], np.ndarray],
    documents: Sequence[np.ndarray],
    window: int,
    stride: int = 256,
    *,
    bos_id: int | None,
    convention: str = "token",
    batch_size: int = 1,
    document_bytes: Sequence[int] | None = None,
    words: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Perplexity:
    """Sliding-window perplexity over documents.

    With a BOS, every window starts with it, it counts towards the window's tokens (positions stay below
    `window`), and the first token of a document is scored too; without, that token has nothing to be
    predicted from and is left out.

    Conventions:
        "token": exp(sum of NLL / scored tokens), each token scored once, with as much left context as the
            windows allow. The one to quote.
        "yarn": exp of the unweighted mean over windows of each window's mean NLL, the last window of a
            document being short, as in YaRN's script (and LongRoPE's, EasyContext's and Resonance's).
        "longlora": the same stride, but every token of every window scored, as in LongLoRA's script, so that
            tokens with little context weigh as much as those with all of it.

    Args:
        token_nll_fn: see the module's docstring.
        documents: int `[n]` each.
        window: L', longest input to the model in tokens, BOS included.
        stride: S, tokens between windows.
        bos_id: the tokenizer's BOS, or None if it has none.
        convention: one of `CONVENTIONS`.
        batch_size: windows scored together.
        document_bytes: UTF-8 bytes of each document, for bits per byte.
        words: words of all documents together, for the word-level perplexity (`PG19_TEST_WORDS`).
        resamples: of the bootstrap.
        seed: of the bootstrap.
        progress: wraps the iterable of batches, for instance `tqdm`.

    Returns:
        The perplexity with its interval and counts.

    Raises:
        InputError: if the convention is unknown, the window or stride unusable, `document_bytes` of another
            length than `documents`, or no token can be scored.
    """
    if convention not in CONVENTIONS:
        raise InputError(
            f"eval.perplexity_convention is {convention!r}: use one of {', '.join(map(repr, CONVENTIONS))}"
        )
    if document_bytes is not None and len(document_bytes) != len(documents):
        raise InputError(f"there are {len(documents)} documents and {len(document_bytes)} document_bytes")
    if not 1 <= stride < window:
        raise InputError(
            f"eval.stride is {stride} and eval.window {window}: a stride of 1 .. {window - 1} leaves each "
            "token something to be predicted from"
        )
    lead = 0 if bos_id is None else 1
    owners, windows = [], []
    for index, document in enumerate(documents):
        for w in sliding_windows(len(document), window - lead, stride, full_last=convention != "yarn"):
            first = w.start if convention == "longlora" else w.first_scored
            # Without BOS the first token of a window has no context.
            first = max(first, w.start + 1 - lead)
            if first < w.end:
                owners.append(index)
                windows.append(w._replace(first_scored=first))
    if not windows:
        raise InputError("no document holds a token that could be scored: perplexity needs text")
    # Windows that score all their tokens together, and those that score a few at their end: a batch costs what the
    # earliest of its scored positions asks for.
    order = sorted(range(len(windows)), key=lambda i: windows[i].first_scored - windows[i].start)
    owners, windows = [owners[i] for i in order], [windows[i] for i in order]

    sums = np.zeros(len(windows))
    done = 0
    for nll in _scores(token_nll_fn, documents, owners, windows, bos_id, batch_size, progress):
        sums[done : done + len(nll)] = nll.sum(axis=1)
        done += len(nll)
    counts = np.array([w.end - w.first_scored for w in windows], np.float64)

    values, weights = (sums / counts, np.ones(len(windows))) if convention == "yarn" else (sums, counts)
    scored, owner = np.unique(owners, return_inverse=True)
    numerators, denominators = np.bincount(owner, values), np.bincount(owner, weights)
    interval = None
    if len(scored) > 1:
        low, high = percentile_interval(bootstrap_ratios(numerators, denominators, resamples, seed))
        interval = (float(np.exp(low)), float(np.exp(high)))

    nll = float(sums.sum())
    repeats = convention == "longlora"
    return Perplexity(
        convention=convention,
        perplexity=float(np.exp(numerators.sum() / denominators.sum())),
        interval=interval,
        nll=nll,
        tokens=int(counts.sum()),
        windows=len(windows),
        documents=len(scored),
        window=window,
        stride=stride,
        bits_per_byte=(
            None if document_bytes is None or repeats else nll / float(sum(document_bytes)) / float(np.log(2))
        ),
        word_perplexity=None if words is None or repeats else float(np.exp(nll / words)),
    )


def position_edges(window: int, context: int | None = None) -> tuple[int, ...]:
    """Edges of log-spaced buckets of position: powers of two, and eighths of the original context around it.

    Args:
        window: tokens of a window.
        context: tokens the model was pre-trained on; buckets an eighth of it wide run from half to twice it, and
            buckets half of it wide beyond.

    Returns:
        Ascending, from 1 to `window`.
    """
    edges = {2**k for k in range(window.bit_length())}
    if context is not None:
        edges |= {context * eighths // 8 for eighths in range(4, 17)}
        edges |= set(range(2 * context, window, max(context // 2, 1)))
    return (*sorted(edge for edge in edges if 1 <= edge < window), window)


def perplexity_by_position(
    token_nll_fn: Callable[[np.ndarray, np.ndarray], np.ndarray],
    documents: Sequence[np.ndarray],
    window: int,
    *,
    bos_id: int | None,
    edges: Sequence[int] | None = None,
    batch_size: int = 1,
    resamples: int = 1000,
    seed: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> PositionPerplexity:
    """Mean NLL as a function of position, which shows where a model's window ends.

    Documents are cut into windows that do not overlap, each with a BOS in front if there is one, and every
    token is scored at the position where it stands. Only full windows count, so that all positions see the
    same texts.

    Args:
        token_nll_fn: see the module's docstring.
        documents: int `[n]` each.
        window: tokens of a window, BOS included.
        bos_id: the tokenizer's BOS, or None if it has none.
        edges: positions that bound the buckets, ascending from 1 to `window`; default
            `position_edges(window)`.
        batch_size: windows scored together.
        resamples: of the bootstrap over windows.
        seed: of the bootstrap.
        progress: wraps the iterable of batches, for instance `tqdm`.

    Returns:
        A bucket for each pair of neighbouring edges.

    Raises:
        InputError: if no document fills a window, or the edges do not ascend from 1 to `window`.
    """
    if window < 2:
        raise InputError(f"eval.window is {window}: it must be at least 2")
    edges = np.asarray(position_edges(window) if edges is None else edges)
    if edges[0] != 1 or edges[-1] != window or np.any(np.diff(edges) < 1):
        raise InputError(f"position edges are {edges.tolist()}: they must ascend from 1 to the window, {window}")
    held = window - (bos_id is not None)
    owners, windows = [], []
    for index, document in enumerate(documents):
        for start in range(0, len(document) - held + 1, held):
            owners.append(index)
            windows.append(Window(start, start + held, start + held - window + 1))
    if not windows:
        longest = max((len(document) for document in documents), default=0)
        raise InputError(
            f"eval.window is {window}, and no document fills a window: the longest has {longest} tokens of "
            f"the {held} that it takes"
        )

    sums = np.concatenate(
        [
            # Column t holds the NLL of the token at position t + 1; the last column holds none.
            np.add.reduceat(nll[:, :-1], edges[:-1] - 1, axis=1)
            for nll in _scores(token_nll_fn, documents, owners, windows, bos_id, batch_size, progress)
        ]
    )
    widths = np.broadcast_to(np.diff(edges), sums.shape)
    means = sums.sum(axis=0) / widths.sum(axis=0)
    if len(windows) > 1:
        resampled = bootstrap_ratios(sums, widths, resamples, seed)
        errors = resampled.std(axis=0, ddof=1)
        low, high = np.exp(percentile_interval(resampled))
    buckets = tuple(
        PositionBucket(
            start=int(edges[i]),
            end=int(edges[i + 1]),
            tokens=int(widths[:, i].sum()),
            nll=float(means[i]),
            perplexity=float(np.exp(means[i])),
            standard_error=float(errors[i]) if len(windows) > 1 else None,
            interval=(float(low[i]), float(high[i])) if len(windows) > 1 else None,
        )
        for i in range(len(means))
    )
    return PositionPerplexity(window, len(windows), len(set(owners)), buckets)


def _scores(token_nll_fn, documents, owners, windows, bos_id, batch_size, progress):
    """Yields float64 `[<= batch_size, T]` NLL of the windows in order, 0 where nothing is scored."""
    lead = 0 if bos_id is None else 1
    length = max(w.end - w.start for w in windows) + lead
    for first in progress(range(0, len(windows), batch_size)):
        batch = list(zip(owners[first : first + batch_size], windows[first : first + batch_size]))
        # The last batch keeps the shape of the others, so that one compilation serves all.
        tokens = np.zeros((batch_size, length), np.int32)
        wanted = np.zeros((batch_size, length), bool)
        for row, (owner, w) in enumerate(batch):
            if bos_id is not None:
                tokens[row, 0] = bos_id
            tokens[row, lead : lead + w.end - w.start] = documents[owner][w.start : w.end]
            # The NLL of a token stands one column before it.
            offset = lead - 1 - w.start
            wanted[row, w.first_scored + offset : w.end + offset] = True
        nll = np.asarray(token_nll_fn(tokens, wanted), np.float64)
        yield np.where(wanted, nll, 0.0)[: len(batch)]
