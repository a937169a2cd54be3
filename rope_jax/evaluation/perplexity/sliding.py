"""Perplexity of long documents over a sliding window."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rope_jax.errors import InputError
from rope_jax.evaluation.intervals import bootstrap_interval

# From tokens int32 [B, T] and wanted bool [B, T] to float32 [B, T]: at [b, t] the NLL in nats of tokens[b, t + 1] after
# tokens[b, : t + 1] where that is wanted.
TokenNll = Callable[[np.ndarray, np.ndarray], np.ndarray]

CONVENTIONS = ("token", "yarn", "longlora")


class Window(NamedTuple):
    """One window on a document: it holds tokens `start .. end - 1` and scores `first_scored .. end - 1`."""

    start: int
    end: int
    first_scored: int


def sliding_windows(n_tokens: int, window: int, stride: int, full_last: bool = True) -> list[Window]:
    """Windows that score every token of a document, BOS not counted, exactly once.

    The first window scores all its tokens, each later one the `stride` tokens beyond the window before it, or what is
    left of them. A document shorter than the window is one window. `full_last` moves the last window back so that it is
    full and gives its tokens as much left context as the windows allow; otherwise it starts a stride after the one
    before, so that it is short.
    """
    if not 1 <= stride <= window:
        raise InputError(
            f"`stride` is {stride} and a window holds {window} document tokens: use a stride of at least 1 that skips "
            "no tokens"
        )
    windows = []
    start, scored = 0, 0
    while scored < n_tokens:
        end = min(start + window, n_tokens)
        windows.append(Window(max(0, end - window) if full_last else start, end, scored))
        start, scored = start + stride, end
    return windows


def score_windows(
    token_nll: TokenNll,
    windows: Sequence[tuple[np.ndarray, Window]],
    bos_id: int | None,
    batch_size: int,
    progress: Callable[[Iterable], Iterable],
) -> Iterator[np.ndarray]:
    """NLLs in nats of windows on documents, in their order, in batches of one shape with BOS, if any, in front.

    Yields:
        float64 `[<= batch_size, T]`, a row per window; 0 where nothing is scored.
    """
    lead = 0 if bos_id is None else 1
    length = max(w.end - w.start for _, w in windows) + lead
    for first in progress(range(0, len(windows), batch_size)):
        batch = windows[first : first + batch_size]
        # The last batch has the shape of the others, so that one compilation serves all.
        tokens = np.zeros((batch_size, length), np.int32)
        wanted = np.zeros((batch_size, length), bool)
        for row, (document, w) in enumerate(batch):
            if bos_id is not None:
                tokens[row, 0] = bos_id
            tokens[row, lead : lead + w.end - w.start] = document[w.start : w.end]
            # The NLL of a token stands one column before it.
            offset = lead - 1 - w.start
            wanted[row, w.first_scored + offset : w.end + offset] = True
        nll = np.asarray(token_nll(tokens, wanted), np.float64)
        yield np.where(wanted, nll, 0.0)[: len(batch)]


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """A perplexity and all that is needed to read it.

    Attributes:
        convention: how NLLs were averaged.
        perplexity: its value.
        interval: 95% bootstrap interval over documents; None for a single document, which has no spread.
        nll: sum of the NLL of scored tokens, nats.
        tokens: scored tokens; with convention "longlora" a token counts once per window that holds it.
        windows: windows scored.
        documents: documents with a scored token.
        window: longest input to the model, tokens, BOS included.
        stride: tokens between windows.
        bits_per_byte: NLL per byte of text in bits, comparable between tokenizers; None with "longlora", which scores
            tokens repeatedly.
        word_perplexity: exp(NLL / words), if words were given; None with "longlora".
        by_document: of each document with a scored token, sum and weight of what `perplexity` averages.
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
    by_document: tuple[tuple[float, float], ...]


def perplexity(
    token_nll: TokenNll,
    documents: Sequence[np.ndarray],
    window: int,
    stride: int = 256,
    *,
    bos_id: int | None,
    convention: str = "token",
    batch_size: int = 1,
    document_bytes: Sequence[int] | None = None,
    words: int | None = None,
    seed: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Perplexity:
    """Sliding-window perplexity over documents, int `[n]` each, without special tokens.

    With a BOS, every window starts with it, it counts towards the window's tokens (positions stay below `window`), and
    the first token of a document is scored too. Without one, that token has no context and is left out.

    Conventions:
        "token": exp(sum of NLL / scored tokens), each token scored once, with as much left context as the windows
            allow. The one to quote.
        "yarn": exp of the unweighted mean over windows of each window's mean NLL, the last window of a document being
            short, as in YaRN's script (and LongRoPE's, EasyContext's and Resonance's).
        "longlora": the same stride, but every token of every window scored, as in LongLoRA's script, so that tokens
            with little context weigh as much as those with all of it.

    `document_bytes`, the UTF-8 bytes of each document, give bits per byte; `words`, those of all documents together,
    the word-level perplexity; `seed` is the bootstrap's.
    """
    if convention not in CONVENTIONS:
        raise InputError(f"`convention` is {convention!r}: use one of {', '.join(map(repr, CONVENTIONS))}")
    if document_bytes is not None and len(document_bytes) != len(documents):
        raise InputError(
            f"`document_bytes` has {len(document_bytes)} entries for {len(documents)} documents: give one for each"
        )
    if not 1 <= stride < window:
        raise InputError(
            f"`stride` is {stride} and `window` {window}: use a stride of 1 .. {window - 1}, which leaves each token "
            "some context"
        )
    lead = 0 if bos_id is None else 1
    # Of each window the document's index, and what it scores.
    windows = []
    for index, document in enumerate(documents):
        for w in sliding_windows(len(document), window - lead, stride, full_last=convention != "yarn"):
            first = w.start if convention == "longlora" else w.first_scored
            # Without BOS the first token of a window has no context.
            first = max(first, w.start + 1 - lead)
            if first < w.end:
                windows.append((index, w._replace(first_scored=first)))
    if not windows:
        raise InputError("no document holds a token that could be scored: perplexity needs text")
    # Windows that score all their tokens are batched apart from those that score a few at their end: the cost of a
    # batch is that of its earliest scored position.
    windows.sort(key=lambda entry: entry[1].first_scored - entry[1].start)

    owners = np.array([index for index, _ in windows])
    counts = np.array([w.end - w.first_scored for _, w in windows], np.float64)
    placed = [(documents[index], w) for index, w in windows]
    sums = np.concatenate([n.sum(axis=1) for n in score_windows(token_nll, placed, bos_id, batch_size, progress)])

    values, weights = (sums / counts, np.ones(len(windows))) if convention == "yarn" else (sums, counts)
    scored, owner = np.unique(owners, return_inverse=True)
    numerators, denominators = np.bincount(owner, values), np.bincount(owner, weights)
    interval = bootstrap_interval(numerators, denominators, seed)
    nll = float(sums.sum())
    repeats = convention == "longlora"
    return Perplexity(
        convention=convention,
        perplexity=float(np.exp(numerators.sum() / denominators.sum())),
        interval=interval and (float(np.exp(interval[0])), float(np.exp(interval[1]))),
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
        by_document=tuple(zip(numerators.tolist(), denominators.tolist())),
    )
