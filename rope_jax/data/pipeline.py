"""From documents to batches of packed rows, with Grain: shuffled, shared by processes, resumed exactly."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from rope_jax.data.tokenizer import Tokenizer
from rope_jax.errors import InputError

# A book of 500 kB fills dozens of consecutive rows, so a batch of consecutive rows would show the optimizer one or
# two books. Rows are therefore shuffled after packing, within windows of about fifteen books. Interleaving as many
# streams of documents would mix as well, but a stream of short documents starts its next epoch before a stream
# of long ones has ended; in a single stream every document is seen once per epoch. A window costs 12 bytes a token
# (25 MB); the first batch, of a new or a resumed run, waits until one window is tokenised.
_WINDOW_TOKENS = 1 << 21
# Packing costs per row, too: short rows get a smaller window, so that the first batch does not take seconds.
_WINDOW_ROWS = 1 << 13
# Documents that threads tokenise ahead, about as many as the next window needs.
_READ_AHEAD = grain.ReadOptions(num_threads=4, prefetch_buffer_size=16)


class Source(Protocol):
    """Random access to documents `{"id": str, "text": str}`, such as a split of a corpus."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, str]: ...


class TrainingBatches:
    """An endless iterator of batches whose position can be saved and restored.

    Each batch is a dictionary of int32 arrays `[B, T]`: `tokens`; `segment_ids`, which number the documents
    within a row from 1 (0 would be padding, of which a packed row has none); and `positions`, tokens since the
    segment began, so 0 where a document or a row begins.
    """

    def __init__(
        self,
        streams: Mapping[int, grain.DatasetIterator],
        kept: Mapping[int, Sequence[int]],
        description: Mapping[str, Any],
    ):
        self._streams = dict(streams)
        self._kept = {stream: np.asarray(rows) for stream, rows in kept.items()}
        self._description = dict(description)

    def __iter__(self) -> TrainingBatches:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        parts = {stream: next(batches) for stream, batches in self._streams.items()}

        def joined(field):
            return np.concatenate([parts[stream][field][rows] for stream, rows in self._kept.items()])

        return {
            "tokens": joined("tokens"),
            "segment_ids": joined("tokens_segment_ids"),
            "positions": joined("tokens_positions"),
        }

    def get_state(self) -> dict[str, Any]:
        """The position after the batches taken so far.

        Returns:
            A dictionary that `json` can write; what it reads back is as good. Those of all processes together, see
            `join_states`, serve a run of any number of processes.
        """
        positions = {str(stream): batches.get_state() for stream, batches in self._streams.items()}
        return {"pipeline": dict(self._description), "positions": positions}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues behind the batch after which `state` was taken; the batches to come are the very same.

        Args:
            state: from `get_state` of an iterator made with the same arguments, apart from `rows`.

        Raises:
            InputError: if it was made with others, so that its position means nothing here.
        """
        saved = state["pipeline"]
        for field, value in self._description.items():
            if saved.get(field) != value:
                raise InputError(
                    f"the saved data position is for {field} {saved.get(field)}, and this run has {value}; "
                    "resume with the data, batch, seed and streams of the saved run, or start a new one"
                )
        for stream, batches in self._streams.items():
            if str(stream) not in state["positions"]:
                raise InputError(
                    f"the saved data position lacks stream {stream}: it is that of one process, not of all"
                )
            # Grain compares slices with tuples, and JSON knows only lists.
            batches.set_state(_lists_to_tuples(state["positions"][str(stream)]))


def join_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The position of a whole run from those of its processes.

    Args:
        states: from `TrainingBatches.get_state`, after equally many batches in each process.

    Returns:
        What `TrainingBatches.set_state` takes in any process of any number of them.
    """
    positions = {stream: position for state in states for stream, position in state["positions"].items()}
    return {**states[0], "positions": dict(sorted(positions.items(), key=lambda item: int(item[0])))}


def training_batches(
    source: Source,
    tokenizer: Tokenizer,
    batch_size: int,
    length: int,
    seed: int,
    rows: Sequence[int] | None = None,
    streams: int = 1,
) -> TrainingBatches:
    """Batches of rows that are packed without waste from documents in an order drawn anew every epoch.

    Documents get BOS in front and EOS behind where the tokenizer has them, are concatenated, and cut every
    `length` tokens. The batches are the same however many processes share them; a process asks for its rows.

    Documents are dealt out to streams, the same ones in every epoch, and each stream fills its share of every
    batch. A process packs the streams that its rows come from, so that with one stream every process reads all
    documents, and with as many as there are processes each reads its own.

    Args:
        source: the documents.
        tokenizer: applied on the fly, in threads.
        batch_size: rows B of a batch over all processes.
        length: tokens T of a row.
        seed: from 0 to 2^32 - 1; determines the batches, given the other arguments.
        rows: numbers of the rows of every batch that are given, ascending; None gives all.
        streams: a divisor of `batch_size`.

    Returns:
        The iterator, at its beginning.

    Raises:
        InputError: if there are fewer documents than streams, or an argument is out of its range.
    """
    for name, value in (("batch_size", batch_size), ("length", length), ("config.data.streams", streams)):
        if value < 1:
            raise InputError(f"{name} is {value}: it must be at least 1")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}: it must be from 0 to 2^32 - 1")
    if batch_size % streams:
        raise InputError(
            f"config.data.streams is {streams}, which does not divide the {batch_size} rows of a microbatch: choose a "
            "divisor"
        )
    if len(source) < streams:
        raise InputError(
            f"config.data.path: {len(source)} documents cannot be dealt out to {streams} streams; "
            "split documents into several files or lower config.data.streams"
        )
    share = batch_size // streams
    kept: dict[int, list[int]] = {}
    for row in range(batch_size) if rows is None else rows:
        kept.setdefault(row // share, []).append(row % share)
    # A window of several epochs would only delay the first batch; a token is a character or more.
    epoch_rows = _characters(source) // streams // length
    window = max(share, min(_WINDOW_TOKENS // length, _WINDOW_ROWS, epoch_rows))

    def stream_batches(stream):
        # Grain adds the number of the window to the seed, in 32 bits.
        window_seed = int(np.random.SeedSequence([seed, stream]).generate_state(1)[0]) >> 1
        documents = grain.MapDataset.source(source)[stream::streams].seed(seed).shuffle().repeat()
        encoded = documents.map(functools.partial(_encode_document, tokenizer)).to_iter_dataset(_READ_AHEAD)
        packed = grain.experimental.ConcatThenSplitIterDataset(encoded, length_struct={"tokens": length})
        packed = grain.experimental.WindowShuffleIterDataset(packed, window_size=window, seed=window_seed)
        return iter(packed.batch(share, drop_remainder=True))

    description = {
        "number of documents": len(source),
        "vocabulary": tokenizer.vocab_size,
        "batch_size": batch_size,
        "length": length,
        "seed": seed,
        "streams": streams,
        "shuffle window": window,
    }
    return TrainingBatches({stream: stream_batches(stream) for stream in kept}, kept, description)


def token_documents(
    source: Source, tokenizer: Tokenizer, max_tokens: int, per_document: int | None = None
) -> list[tuple[str, np.ndarray]]:
    """Documents for evaluation: the first of a split, up to a number of tokens in all.

    Args:
        source: the documents.
        tokenizer: applied without special tokens.
        max_tokens: budget; the document that exceeds it is cut, and no further one is read.
        per_document: tokens kept of each document at most, so that a budget covers more of them; None keeps all.

    Returns:
        Id and int32 `[tokens]` of each document, in the order of `source`.

    Raises:
        InputError: if the budget is not positive.
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}: it must be at least 1")
    documents: list[tuple[str, np.ndarray]] = []
    left = max_tokens
    for index in range(len(source)):
        document = source[index]
        tokens = tokenizer.encode(document["text"])[:per_document][:left]
        if len(tokens):
            documents.append((document["id"], tokens))
            left -= len(tokens)
        if not left:
            break
    return documents


def _characters(source: Source) -> int:
    """Characters in all documents, estimated from a few of them."""
    sample = range(0, len(source), -(-len(source) // 16))
    return len(source) * sum(len(source[index]["text"]) for index in sample) // len(sample)


def _encode_document(tokenizer: Tokenizer, document: Mapping[str, str]) -> dict[str, np.ndarray]:
    def special(token: int | None) -> Sequence[int]:
        return [] if token is None else [token]

    parts = [special(tokenizer.bos_id), tokenizer.encode(document["text"]), special(tokenizer.eos_id)]
    return {"tokens": np.concatenate([np.asarray(part, np.int32) for part in parts])}


def _lists_to_tuples(state: Any) -> Any:
    if isinstance(state, Mapping):
        return {key: _lists_to_tuples(value) for key, value in state.items()}
    return tuple(_lists_to_tuples(value) for value in state) if isinstance(state, (list, tuple)) else state
