"""Packing against a plain recomputation, exact resumption, sharding, and the limits of arguments."""

import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.data import pipeline
from rope_jax.data.mixed import Mix
from rope_jax.data.pipeline import join_states, share_past, token_documents, training_batches
from rope_jax.data.positions import Skips
from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.errors import InputError
from tests.processes import ended, python

BYTES = load_tokenizer("bytes")


class WithoutSpecials:
    """Bytes without BOS and EOS."""

    vocab_size, bos_id, eos_id = 256, None, None
    encode = staticmethod(BYTES.encode)


def documents(texts):
    return [{"id": str(i), "text": text} for i, text in enumerate(texts)]


def numbered(count, seed=0, most=60):
    """Documents that name themselves: 'doc 3: xxxx…'."""
    lengths = np.random.default_rng(seed).integers(0, most, count)
    return documents(f"doc {i}: " + "x" * length for i, length in enumerate(lengths))


def take(batches, count):
    return list(itertools.islice(batches, count))


def assert_equal(actual, expected):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected):
        assert a.keys() == e.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], e[key])


def pack(stream, length):
    """Rows of a concatenation of documents, recomputed token by token."""
    tokens, owners = [], []
    for number, document in enumerate(stream):
        tokens += list(document)
        owners += [number] * len(document)
    rows = []
    for start in range(0, len(tokens) - length + 1, length):
        row = {"tokens": tokens[start : start + length], "segment_ids": [], "positions": []}
        for i in range(start, start + length):
            new = i == start or owners[i] != owners[i - 1]
            row["segment_ids"].append(1 if i == start else row["segment_ids"][-1] + new)
            row["positions"].append(0 if new else row["positions"][-1] + 1)
        rows.append(row)
    return rows


@settings(max_examples=40, deadline=None)
@given(
    # Told apart by their first character, so that the drawn order can be read off the stream.
    texts=st.lists(
        st.text(alphabet="abcdefgh", min_size=1, max_size=30),
        min_size=1,
        max_size=6,
        unique_by=lambda text: text[0],
    ),
    length=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
    specials=st.booleans(),
)
def test_packing_conserves_the_token_stream(texts, length, seed, specials):
    tokenizer = BYTES if specials else WithoutSpecials
    # A window of one row, so that rows come in the order of the stream.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_WINDOW_ROWS", 1)
        batches = training_batches(documents(texts), tokenizer, 1, length, seed)
        total = sum(len(text) + 2 * specials for text in texts)
        rows = [{key: value[0].tolist() for key, value in b.items()} for b in take(batches, 2 * total // length)]
    tokens = [token for row in rows for token in row["tokens"]]
    stream, begin = [], 0
    for _ in range(2):
        left = [[256, *text.encode(), 257] if specials else list(text.encode()) for text in texts]
        # A lone BOS at the end of the stream tells of no document.
        while left and begin + specials < len(tokens):
            (document,) = [d for d in left if d[specials] == tokens[begin + specials]]
            left.remove(document)
            stream.append(document)
            begin += len(document)
    stream += left  # The document that the lone BOS begins, whichever it is, begins with BOS.
    assert rows == pack(stream, length)[: len(rows)]


def test_shapes_dtypes_and_segments():
    batches = training_batches(numbered(20), BYTES, 3, 32, seed=5)
    for batch in take(batches, 40):
        assert set(batch) == {"tokens", "segment_ids", "positions"}
        for array in batch.values():
            assert array.shape == (3, 32) and array.dtype == np.int32
        tokens, segments, positions = batch["tokens"], batch["segment_ids"], batch["positions"]
        assert (segments[:, 0] == 1).all() and (positions[:, 0] == 0).all()
        assert (segments >= 1).all(), "a packed row has no padding"
        begins = np.diff(segments, axis=1) == 1
        np.testing.assert_array_equal(tokens[:, 1:] == BYTES.bos_id, begins)
        np.testing.assert_array_equal(positions[:, 1:], np.where(begins, 0, positions[:, :-1] + 1))


def epochs(batches, count, epochs):
    """Ids of documents in the order in which they are read, by epoch."""
    text = ""
    found = []
    while len(found) < count * epochs + 1:
        text += BYTES.decode(next(batches)["tokens"].ravel())
        found = re.findall(r"doc (\d+):", text)
    return [found[i * count : (i + 1) * count] for i in range(epochs)]


def test_every_epoch_has_every_document_in_another_order(monkeypatch):
    monkeypatch.setattr(pipeline, "_WINDOW_ROWS", 1)
    first, second = epochs(training_batches(numbered(30), BYTES, 1, 50, seed=3), 30, 2)
    assert sorted(first) == sorted(second) == sorted(map(str, range(30)))
    assert first != second
    assert epochs(training_batches(numbered(30), BYTES, 1, 50, seed=3), 30, 1) == [first]
    assert epochs(training_batches(numbered(30), BYTES, 1, 50, seed=4), 30, 1) != [first]


def test_streams_read_disjoint_documents(monkeypatch):
    monkeypatch.setattr(pipeline, "_WINDOW_ROWS", 1)
    counts = (10, 10, 9)
    read = []
    for row, count in enumerate(counts):
        both = epochs(training_batches(numbered(29), BYTES, 3, 40, 7, rows=[row], streams=3), count, 2)
        assert sorted(both[0]) == sorted(both[1])
        read += both[0]
    assert sorted(read) == sorted(map(str, range(29)))


@pytest.mark.parametrize("streams", [1, 2, 4])
def test_processes_share_the_same_batches(streams):
    """Whoever takes which rows, the batches are those of one process; so are they after a change of who takes which."""
    whole = take(training_batches(numbered(25), BYTES, 4, 32, 1, streams=streams), 9)
    divisions = [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0], [1], [2], [3]], [[0, 2], [1, 3]], [[0, 1, 2, 3], [0, 1, 2, 3]]]
    state = None
    for number, division in enumerate(divisions):
        states = []
        for rows in division:
            part = training_batches(numbered(25), BYTES, 4, 32, 1, rows=rows, streams=streams)
            if state:
                part.set_state(json.loads(json.dumps(state)))
            for expected in whole[number : number + 2]:
                assert_equal([next(part)], [{name: value[rows] for name, value in expected.items()}])
                states.append(part.get_state())
        state = join_states(states[::2])  # after one batch of each process


def test_position_of_one_process_is_not_that_of_the_run():
    part = training_batches(numbered(25), BYTES, 4, 32, 1, rows=[0, 1], streams=2)
    next(part)
    with pytest.raises(InputError, match="lacks stream 1"):
        training_batches(numbered(25), BYTES, 4, 32, 1, streams=2).set_state(part.get_state())


def test_rows_of_a_long_document_are_spread_over_batches():
    """Rows are shuffled after packing: neighbours in a document are rarely neighbours in a batch."""
    source = documents(chr(97 + i) * 4000 for i in range(20))
    batch = next(training_batches(source, BYTES, 16, 100, seed=0))
    kinds = {chr(row[50]) for row in batch["tokens"]}
    assert len(kinds) >= 8
    in_order = {chr(row[50]) for row in list(itertools.islice(_unshuffled(source), 16))}
    assert len(in_order) == 1


def _unshuffled(source):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_WINDOW_ROWS", 1)
        batches = training_batches(source, BYTES, 1, 100, seed=0)
    return (batch["tokens"][0] for batch in batches)


# Documents whose length is a multiple of the row's leave no remainder, a case of its own in Grain's state.
EXACT = documents("y" * length for length in (30, 62, 94, 30, 30))


@pytest.mark.parametrize(
    ("source", "window"),
    [
        *((numbered(25), 1), (EXACT, 1), (documents(["z" * 1000]), 7)),
        *((numbered(3), 7), (EXACT, 8192), (numbered(25), 8192)),
    ],
)
def test_resume_is_exact(source, window, monkeypatch):
    monkeypatch.setattr(pipeline, "_WINDOW_ROWS", window)
    reference = take(training_batches(source, BYTES, 2, 32, seed=1), 21)
    batches = training_batches(source, BYTES, 2, 32, seed=1)
    states = []
    for batch in reference[:20]:
        states.append(json.dumps(batches.get_state()))
        assert_equal([next(batches)], [batch])
    for k in (0, 7, 16):
        resumed = training_batches(source, BYTES, 2, 32, seed=1)
        resumed.set_state(json.loads(states[k]))
        assert_equal(take(resumed, 4), reference[k : k + 4])
    # An iterator that was already used goes back as well, and what it then saves is as good.
    batches.set_state(json.loads(states[11]))
    assert_equal(take(batches, 5), reference[11:16])
    resumed.set_state(json.loads(json.dumps(batches.get_state())))
    assert_equal(take(resumed, 5), reference[16:21])


RESUME = """
import json, sys
from rope_jax.data.pipeline import training_batches
from rope_jax.data.tokenizer import load_tokenizer
given = json.loads(sys.argv[1])
batches = training_batches(given["source"], load_tokenizer("bytes"), 2, 24, seed=9)
batches.set_state(given["state"])
print(json.dumps([next(batches)["tokens"].tolist() for _ in range(4)]))
"""


def test_resume_in_another_process():
    batches = training_batches(numbered(12), BYTES, 2, 24, seed=9)
    next(batches)
    state = {"source": numbered(12), "state": batches.get_state()}
    with python("-c", RESUME, json.dumps(state)) as process:
        ((out, error),) = ended(process)
    assert error == "", "the threads end with the process, silently"
    assert json.loads(out) == [batch["tokens"].tolist() for batch in take(batches, 4)]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"length": 16}, "length 24, and this run has 16"),
        ({"batch_size": 4}, "batch_size 2, and this run has 4"),
        ({"seed": 2}, "seed 1"),
        ({"streams": 2}, "streams 1, and this run has 2"),
        ({"source": numbered(13)}, "number of documents 12, and this run has 13"),
        ({"tokenizer": WithoutSpecials}, "vocabulary 258"),
    ],
)
def test_state_of_another_run_is_refused(change, field):
    arguments = {"source": numbered(12), "tokenizer": BYTES, "batch_size": 2, "length": 24, "seed": 1}
    state = training_batches(**arguments).get_state()
    with pytest.raises(InputError, match=field):
        training_batches(**arguments | change).set_state(state)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("streams", {"batch_size": 4, "streams": 4}),  # of three documents
        ("streams", {"streams": 3}),
        ("streams", {"streams": 0}),
        ("batch_size", {"batch_size": 0}),
        ("length", {"length": 0}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 2**32}),
    ],
)
def test_arguments_out_of_range(field, change):
    arguments = {"source": numbered(3), "tokenizer": BYTES, "batch_size": 2, "length": 24, "seed": 1}
    with pytest.raises(InputError, match=f"`{field}` is {change[field]}") as error:
        training_batches(**arguments | change)
    assert error.value.field == field


@pytest.mark.parametrize(("sizes", "expected"), [((300, 5, 5, 90, 33), None), ((20, 30), 0.0), ((3000,), 0.5)])
def test_share_past_a_context_is_that_of_the_batches(sizes, expected):
    """Documents of 300, 90 and a few bytes in rows of 64 tokens, counted in eight epochs of batches."""
    source = documents("x" * size for size in sizes)
    share = share_past(source, BYTES, length=64, context=32)
    rows = 8 * sum(size + 2 for size in sizes) // 64
    positions = np.concatenate([b["positions"] for b in take(training_batches(source, BYTES, 1, 64, 0), rows)])
    counted = np.mean(positions >= 32)
    # Where rows begin is a matter of chance.
    assert share == pytest.approx(counted, abs=0.02)
    assert expected is None or share == pytest.approx(expected, abs=0.01)


def test_share_is_estimated_from_the_beginnings_of_some_documents():
    whole = share_past(documents("x" * size for size in (300, 9000) * 400), BYTES, 1024, 512)
    # Of 256 documents, 128 +- 8 are long.
    assert whole == pytest.approx(0.5 * (9002 - 512) / 9304, rel=1e-2)


def test_token_documents_cut_at_the_budget():
    source = documents(["abc", "", "défg", "never read"])

    class Guarded(list):
        def __getitem__(self, index):
            assert index < 3, "documents after the budget are not read"
            return super().__getitem__(index)

    result = token_documents(Guarded(source), BYTES, 6)
    assert [(id, tokens.tolist()) for id, tokens in result] == [
        ("0", list(b"abc")),
        ("2", list("défg".encode())[:3]),
    ]
    assert all(tokens.dtype == np.int32 for _, tokens in result)
    everything = token_documents(source, BYTES, 10**9)
    assert [BYTES.decode(tokens) for _, tokens in everything] == ["abc", "défg", "never read"]
    with pytest.raises(InputError) as error:
        token_documents(source, BYTES, 0)
    assert error.value.field == "max_tokens"


def test_real_books_with_llama2(shared, tmp_path):
    from rope_jax.data.corpus import open_corpus

    source = open_corpus("text_folder", shared / "data" / "books", tmp_path)["validation"]
    tokenizer = load_tokenizer(shared / "data" / "llama2_tokenizer")
    few = [{"id": "long", "text": source[0]["text"][:100_000]}, {"id": "short", "text": "A short document."}]
    batch = next(training_batches(few, tokenizer, 4, 1024, seed=0))
    book = " ".join(map(str, [1, *tokenizer.encode(few[0]["text"]), 2]))
    for tokens, segments in zip(batch["tokens"], batch["segment_ids"]):
        longest = tokens[segments == np.bincount(segments).argmax()]
        assert " ".join(map(str, longest)) in book


SKIPS = Skips(reach=64, chunks=3)


def skipping(seed=7, length=12, rows=None, skips=SKIPS, mix=None):
    return training_batches(numbered(9), BYTES, 4, length, seed, rows=rows, streams=2, skips=skips, mix=mix)


def test_skipped_positions_meet_the_whole_context():
    """Each document of a packed row rises from 0 in at most three runs; together they meet every position."""
    segments = np.repeat([1, 2, 3, 4], [5, 1, 4, 2])
    plain = np.concatenate([np.arange(n) for n in (5, 1, 4, 2)])
    met, rng = set(), np.random.default_rng(0)
    for _ in range(500):
        row = SKIPS({"tokens_positions": plain, "tokens_segment_ids": segments}, rng)["tokens_positions"]
        for segment in (1, 2, 3, 4):
            steps = np.diff((row - plain)[segments == segment], prepend=0)
            assert steps[0] == 0 and (steps >= 0).all() and (steps > 0).sum() <= 2
        met |= set(row.tolist())
    assert met == set(range(64))


def test_skips_are_uniform_over_what_fits():
    row = {"tokens_positions": np.arange(20, dtype=np.int32), "tokens_segment_ids": np.ones(20, np.int32)}
    rng = np.random.default_rng(0)
    last = [Skips(reach=100)(row, rng)["tokens_positions"][-1] for _ in range(4000)]
    # 81 skips, each expected 49 times with a standard deviation of 7.
    counts = np.bincount(last)[19:]
    assert len(counts) == 81 and counts.min() > 49 - 5 * 7 and counts.max() < 49 + 5 * 7


def test_skips_resume_bitwise_and_do_not_depend_on_processes():
    whole, plain = take(skipping(), 12), take(skipping(skips=None), 12)
    assert_equal([{**a, "positions": b["positions"]} for a, b in zip(whole, plain)], plain)
    assert all((a["positions"] >= b["positions"]).all() for a, b in zip(whole, plain))
    batches = skipping()
    take(batches, 5)
    state = json.loads(json.dumps(batches.get_state()))
    resumed = skipping()
    resumed.set_state(state)
    assert_equal(take(resumed, 7), whole[5:])
    part = take(skipping(rows=[2, 3]), 12)
    assert_equal(part, [{key: value[2:] for key, value in batch.items()} for batch in whole])
    with pytest.raises(InputError, match="skipped positions"):
        skipping(skips=None).set_state(state)
    with pytest.raises(InputError) as error:
        Skips(64, 1)
    assert error.value.field == "chunks"


def test_short_documents_are_cut_from_the_same_rows():
    """Two of five batches, spread evenly, against a recomputation token by token; the others are as without a mix."""
    mix = Mix(0.4, 5)
    plain, mixed = take(skipping(), 10), take(skipping(mix=mix), 10)
    assert [bool(batch.pop("short")) for batch in mixed] == [False, False, True, False, True] * 2
    for number, (batch, before) in enumerate(zip(mixed, plain)):
        if number % 5 in (2, 4):
            for segments, found, positions in zip(before["segment_ids"], batch["segment_ids"], batch["positions"]):
                pieces = [
                    (segment, begin // 5)
                    for segment in dict.fromkeys(segments)
                    for begin in range((segments == segment).sum())
                ]
                order = list(dict.fromkeys(pieces))
                assert found.tolist() == [1 + order.index(piece) for piece in pieces]
                assert positions.tolist() == [pieces[:i].count(piece) for i, piece in enumerate(pieces)]
            assert batch["positions"].max() == 4 and batch["positions"].dtype == np.int32
            before = {**before, "segment_ids": batch["segment_ids"], "positions": batch["positions"]}
        assert_equal([batch], [before])


def test_a_mix_resumes_bitwise_and_does_not_depend_on_processes():
    mix = Mix(0.4, 5)
    whole, batches = take(skipping(mix=mix), 10), skipping(mix=mix)
    take(batches, 3)
    state = json.loads(json.dumps(batches.get_state()))
    resumed = skipping(mix=mix)
    resumed.set_state(state)
    assert_equal(take(resumed, 7), whole[3:])
    part = skipping(rows=[2, 3], mix=mix)
    part.set_state(state)
    cut = [{key: value[2:] if value.ndim else value for key, value in batch.items()} for batch in whole]
    assert_equal(take(part, 7), cut[3:])
    with pytest.raises(InputError, match="mixed windows"):
        skipping().set_state(state)
    for arguments, field in (((1.0, 5), "share"), ((0.0, 5), "share"), ((0.4, 1), "context")):
        with pytest.raises(InputError) as error:
            Mix(*arguments)
        assert error.value.field == field
