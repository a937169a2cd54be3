"""Batches of packed rows from documents, with Grain: shuffled, shared by processes, resumed exactly."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from rope_jax.data.mixed import Mix
from rope_jax.data.mixture import RecallRows
from rope_jax.data.positions import Skips
from rope_jax.data.tokenizer import Tokenizer
from rope_jax.errors import InputError

# A book of 500 kB fills dozens of consecutive rows; a batch of them would hold one or two books. Rows are therefore
# shuffled after packing, within windows of about fifteen books. Interleaving as many streams of documents would mix
# them too, but a stream of short documents would start its next epoch early; in one stream every document is seen once
# per epoch. A window takes 12 bytes per token (25 MB). The first batch waits until one window is tokenised.
_WINDOW_TOKENS = 1 << 21
# Packing has a cost per row, too. This bound keeps the wait for the first batch of short rows below seconds.
_WINDOW_ROWS = 1 << 13
# Of `share_past`: a second's work for a fast tokenizer, and few texts have more than this many kinds of length.
_SAMPLED_DOCUMENTS, _SAMPLED_CHARACTERS = 256, 1 << 12
# Threads tokenise ahead about as many documents as the next window needs.
_READ_AHEAD = grain.ReadOptions(num_threads=4, prefetch_buffer_size=16)


# Random access to documents `{"id": str, "text": str}`, such as a split of a corpus.
Source = grain.sources.RandomAccessDataSource[Mapping[str, str]]


class TrainingBatches:
    """An endless iterator of batches whose position can be saved and restored.

    Each batch is a dictionary of int32 arrays `[B, T]`: `tokens`; `segment_ids`, which number the documents within a
    row from 1 (packed rows have no padding); and `positions`, tokens since the segment's beginning. With a mix it also
    has the bool `short`.
    """

    def __init__(
        self,
        streams: Mapping[int, grain.DatasetIterator],
        kept: Mapping[int, Sequence[int]],
        description: Mapping[str, Any],
        mix: Mix | None = None,
        recall: RecallRows | None = None,
    ):
        self._streams, self._kept, self._description, self._mix, self._recall = streams, kept, description, mix, recall
        self._taken = 0

    def __iter__(self) -> TrainingBatches:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        parts = [(next(batches), self._kept[stream]) for stream, batches in self._streams.items()]
        fields = {"tokens": "tokens", "segment_ids": "tokens_segment_ids", "positions": "tokens_positions"}
        batch = {name: np.concatenate([part[field][rows] for part, rows in parts]) for name, field in fields.items()}
        if self._recall:
            size, share = (self._description[name] for name in ("batch_size", "streams"))
            places = (stream * (size // share) + row for stream, rows in self._kept.items() for row in rows)
            batch = self._recall(batch, [self._taken * size + place for place in places])
        self._taken += 1
        return self._mix(batch, self._taken - 1) if self._mix else batch

    def get_state(self) -> dict[str, Any]:
        """This process's position after the batches taken so far, as a dictionary that survives JSON."""
        positions = {str(stream): batches.get_state() for stream, batches in self._streams.items()}
        return {"pipeline": dict(self._description), "positions": positions, "taken": self._taken}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Resumes with the batch that would have followed `state`, a whole run's position.

        An InputError tells of an argument other than `rows` that differs from those of the iterator that gave it.
        """
        saved = state["pipeline"]
        for field, value in self._description.items():
            if saved.get(field) != value:
                raise InputError(
                    f"the saved data position is for {field} {saved.get(field)}, and this run has {value}; "
                    "resume with the data, batch, seed and streams of the saved run, or start a new one"
                )
        self._taken = state.get("taken", 0)  # earlier versions, which had no mix, did not count
        for stream, batches in self._streams.items():
            if str(stream) not in state["positions"]:
                raise InputError(
                    f"the saved data position lacks stream {stream}: it is one process's; join those of all processes"
                )
            # Grain compares slices with tuples, which JSON turns into lists.
            batches.set_state(_lists_to_tuples(state["positions"][str(stream)]))


def join_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Joins the positions of all processes, after equally many batches, into that of a run of any number of them."""
    positions = {stream: position for state in states for stream, position in state["positions"].items()}
    return {**states[0], "positions": dict(sorted(positions.items(), key=lambda item: int(item[0])))}


def training_batches(
    source: Source,
    tokenizer: Tokenizer,
    batch_size: int,
    length: int,
    seed: int,
    *,
    rows: Sequence[int] | None = None,
    streams: int = 1,
    skips: Skips | None = None,
    mix: Mix | None = None,
    recall: RecallRows | None = None,
) -> TrainingBatches:
    """Packs documents into batches of rows without padding, in a new order every epoch.

    Documents are wrapped in BOS and EOS (if the tokenizer has them), concatenated, and cut every `length` tokens. The
    batches do not depend on the number of processes; each process asks for its rows.

    Documents are divided into streams, the same in every epoch, each of which fills its share of every batch. A process
    packs only the streams of its rows: with one stream every process reads all documents; with as many streams as
    processes, each reads its own.

    Args:
        source: documents.
        tokenizer: applied on the fly, in threads.
        batch_size: rows B of a batch over all processes.
        length: tokens T of a row.
        seed: determines the order, from 0 to 2^32 - 1.
        rows: rows of every batch that this iterator gives, ascending; None gives all.
        streams: a divisor of `batch_size`.
        skips: how positions skip, if they do; reaches further than a row.
        mix: which batches hold short documents only, if some do.
        recall: which rows are synthetic recall, if some are.
    """
    for name, value in (("batch_size", batch_size), ("length", length), ("streams", streams)):
        if value < 1:
            raise InputError(f"`{name}` is {value}: it must be at least 1")
    if not 0 <= seed < 2**32:
        raise InputError(f"`seed` is {seed}: it must be from 0 to 2^32 - 1")
    if batch_size % streams:
        raise InputError(
            f"`streams` is {streams}, which does not divide the {batch_size} rows of a microbatch: choose a divisor"
        )
    if len(source) < streams:
        raise InputError(
            f"`streams` is {streams}, and there are only {len(source)} documents: lower it, or split documents into "
            "several files"
        )
    share = batch_size // streams
    kept: dict[int, list[int]] = {}
    for row in range(batch_size) if rows is None else rows:
        kept.setdefault(row // share, []).append(row % share)
    # A window above one epoch would only delay the first batch. A token is at least a character.
    epoch_rows = _characters(source) // streams // length
    window = max(share, min(_WINDOW_TOKENS // length, _WINDOW_ROWS, epoch_rows))

    def stream_batches(stream):
        # Grain adds the number of the window to the seed, in 32 bits.
        window_seed, skip_seed = (np.random.SeedSequence([seed, stream]).generate_state(2) >> 1).tolist()
        documents = grain.MapDataset.source(source)[stream::streams].seed(seed).shuffle().repeat()
        encoded = documents.map(functools.partial(_encode_document, tokenizer)).to_iter_dataset(_READ_AHEAD)
        packed = grain.experimental.ConcatThenSplitIterDataset(encoded, length_struct={"tokens": length})
        packed = grain.experimental.WindowShuffleIterDataset(packed, window_size=window, seed=window_seed)
        if skips:
            packed = packed.random_map(skips, seed=skip_seed)
        return iter(packed.batch(share, drop_remainder=True))

    description = {
        "number of documents": len(source),
        "vocabulary": tokenizer.vocab_size,
        "batch_size": batch_size,
        "length": length,
        "seed": seed,
        "streams": streams,
        "shuffle window": window,
        "skipped positions": list(dataclasses.astuple(skips)) if skips else None,
        "mixed windows": list(dataclasses.astuple(mix)) if mix else None,
        "share of recall": recall.share if recall else None,
    }
    return TrainingBatches({stream: stream_batches(stream) for stream in kept}, kept, description, mix, recall)


def share_past(source: Source, tokenizer: Tokenizer, length: int, context: int) -> float:
    """Estimates the share of training tokens whose position is `context` or more, from some hundred documents.

    Positions count from the beginning of a document or, where it spans rows, of the row. A token after `context` others
    of its document is past the context unless a row begins among these, which for rows of `length` tokens happens with
    probability `context / length`: `n` tokens of a document contribute `max(0, n - context) (1 - context / length)`.
    """
    special = sum(token is not None for token in (tokenizer.bos_id, tokenizer.eos_id))
    total = past = 0.0
    count = min(len(source), _SAMPLED_DOCUMENTS)
    for index in np.random.default_rng(0).choice(len(source), count, replace=False):
        text = source[index]["text"]
        beginning = text[:_SAMPLED_CHARACTERS]
        tokens = special + len(tokenizer.encode(beginning)) * len(text) / max(len(beginning), 1)
        total += tokens
        past += max(0.0, tokens - context)
    return past / total * (1 - context / length) if total else 0.0


def token_documents(
    source: Iterable[Mapping[str, str]], tokenizer: Tokenizer, max_tokens: int, per_document: int | None = None
) -> list[tuple[str, np.ndarray]]:
    """Tokenises the first documents of a split, for evaluation, without special tokens; empty ones are left out.

    Args:
        source: documents, with `id` and `text`; not more are read than the budget takes.
        max_tokens: budget over all documents. The one that exceeds it is cut.
        per_document: largest number of a document's tokens to keep.

    Returns:
        Ids, and int32 `[tokens]` of each.
    """
    if max_tokens < 1:
        raise InputError(f"`max_tokens` is {max_tokens}: it must be at least 1")
    documents: list[tuple[str, np.ndarray]] = []
    for document in source:
        tokens = tokenizer.encode(document["text"])[:per_document][:max_tokens]
        if len(tokens):
            documents.append((document["id"], tokens))
            max_tokens -= len(tokens)
        if not max_tokens:
            break
    return documents


def _characters(source: Source) -> int:
    """Number of characters, estimated from about sixteen documents."""
    sample = range(0, len(source), -(-len(source) // 16))
    return len(source) * sum(len(source[index]["text"]) for index in sample) // len(sample)


def _encode_document(tokenizer: Tokenizer, document: Mapping[str, str]) -> dict[str, np.ndarray]:
    special = (tokenizer.bos_id, tokenizer.eos_id)
    begin, end = (np.asarray([] if token is None else [token], np.int32) for token in special)
    return {"tokens": np.concatenate([begin, tokenizer.encode(document["text"]), end])}


def _lists_to_tuples(state: Any) -> Any:
    if isinstance(state, Mapping):
        return {key: _lists_to_tuples(value) for key, value in state.items()}
    return tuple(_lists_to_tuples(value) for value in state) if isinstance(state, (list, tuple)) else state
