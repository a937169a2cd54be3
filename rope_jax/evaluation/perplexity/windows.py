"""Windows on documents, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rope_jax.errors import InputError

# From tokens int32 [B, T] and wanted bool [B, T] to float32 [B, T]: at [b, t] the NLL in nats of tokens[b, t + 1] after
# tokens[b, : t + 1] where that is wanted.
TokenNll = Callable[[np.ndarray, np.ndarray], np.ndarray]
Progress = Callable[[Iterable], Iterable]


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
            "no tokens",
            field="stride",
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
    progress: Progress,
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
