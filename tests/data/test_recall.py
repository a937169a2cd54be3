"""Synthetic recall: what is marked as an answer follows from where it points, and from nowhere else."""

import numpy as np
import pytest

from rope_jax.data.mixture import Mixture, MixtureBatches, RecallRows, skipped
from rope_jax.data.pipeline import training_batches
from rope_jax.data.recall import Symbols, asked_at_the_end, copies, facts, named_symbols, stream
from rope_jax.data.source import TextSource
from rope_jax.data.subword import train_subword
from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.errors import InputError

SYMBOLS = Symbols(100, 16, 3)
TEXT = np.arange(90, dtype=np.int32)[np.random.default_rng(0).integers(0, 90, 4096)]


def rows(kind, length, rng):
    if kind == "stream":
        return stream(rng, length, SYMBOLS)
    if kind == "copies":
        return copies(rng, length, SYMBOLS)
    if kind == "facts":
        return facts(rng, TEXT[:length], SYMBOLS, 8)
    return asked_at_the_end(rng, TEXT[:length], SYMBOLS, 8)[0]


def key(token):
    """Which key an answer belongs to."""
    return (token - 116) // 3


@pytest.mark.parametrize("kind", ["stream", "copies", "facts", "asked"])
@pytest.mark.parametrize("length", [255, 256])
def test_an_answer_stands_where_its_distance_says(kind, length):
    for seed in range(20):
        tokens, distances = rows(kind, length, np.random.default_rng(seed))
        assert tokens.shape == distances.shape == (length,)
        places = np.flatnonzero(distances)
        assert len(places)
        sources = places - distances[places]
        assert sources.min() >= 0
        np.testing.assert_array_equal(tokens[places], tokens[sources])
        if kind == "copies":
            np.testing.assert_array_equal(tokens[places - 1], tokens[sources - 1])
            continue
        np.testing.assert_array_equal(tokens[places - 1] - 100, key(tokens[places]))
        # The last place that answers: no later one has the key. All answers of a key in a row are the same.
        answers = np.where((tokens >= 116) & (tokens < 164), key(tokens), -1)
        for place, source in zip(places, sources):
            assert answers[place] not in answers[source + 1 : place]
            assert len(set(tokens[answers == answers[place]])) == 1


def test_facts_in_a_text_are_asked_for_at_all_distances():
    found = [facts(np.random.default_rng(i), TEXT[:512], SYMBOLS, 16).distances for i in range(60)]
    distances = np.concatenate(found)
    counts = np.histogram(distances[distances > 0], bins=8, range=(0, 512))[0]
    # The distance of two random places of a row falls linearly.
    expected = counts.sum() * np.arange(15, 0, -2) / 64
    assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_without_the_facts_only_the_questions_are_left():
    recall, without = asked_at_the_end(np.random.default_rng(3), TEXT[:256], SYMBOLS, 8)
    np.testing.assert_array_equal(recall.tokens[-16:], without[-16:])
    assert np.isin(recall.tokens[:-16], SYMBOLS.all).sum() == 8
    assert not np.isin(without[:-16], SYMBOLS.all).any()
    changed = np.flatnonzero(recall.tokens != without)
    # The depths of the facts cover the row.
    assert len(changed) == 8 and np.diff(changed).max() < 2 * 240 / 8


@pytest.fixture(scope="module")
def mixture():
    return Mixture(TEXT, SYMBOLS, 0.25, 99)


def test_any_batch_is_found_by_its_number(mixture):
    batches = MixtureBatches(mixture, (8, 64), 5)
    three = [next(batches) for _ in range(3)]
    resumed = MixtureBatches(mixture, (8, 64), 5)
    resumed.set_state({"number": 2})
    for name, values in next(resumed).items():
        np.testing.assert_array_equal(values, three[2][name])
        assert not np.array_equal(values, three[1][name]) or name != "tokens"
    assert resumed.get_state() == batches.get_state() == {"number": 3}


def test_the_share_of_recall_is_that_of_every_batch(mixture):
    for number in range(4):
        batch = mixture.batch(number, 8, 64, 0)
        assert np.isin(batch["tokens"], SYMBOLS.all).any(axis=1).sum() == 2
        begins = batch["positions"] == 0
        assert (batch["tokens"][begins] == 99).all() and begins[:, 0].all()
        np.testing.assert_array_equal(np.cumsum(begins, axis=1), batch["segment_ids"])


def test_too_little_text_is_refused():
    with pytest.raises(InputError) as caught:
        Mixture(TEXT[:10], SYMBOLS, 0.25, 99).batch(0, 1, 64, 0)
    assert caught.value.field == "text"


def test_skipped_positions_meet_every_position_once_far_enough():
    rng, positions = np.random.default_rng(0), np.tile(np.arange(32), (400, 1))
    moved = skipped(rng, positions, 128)
    assert set(moved.ravel()) == set(range(128))
    steps = np.diff(moved, axis=1)
    assert (steps >= 1).all() and ((steps > 1).sum(axis=1) <= 1).all()


def test_a_trained_tokenizer_keeps_its_symbols_for_recall(tmp_path):
    texts = ["the cat sat on the mat, the dog <|question_3|> lay by the door " * 20, "naïve café\n"]
    first = train_subword(tmp_path, texts, 320, Symbols(0, 4, 3))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == first + 16 <= 320 and tokenizer.symbols == Symbols(first, 4, 3)
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert ids.max() < first - 2 and len(ids) < len(text.encode())
    with pytest.raises(InputError) as caught:
        train_subword(tmp_path, texts, 256, Symbols(0, 4, 3))
    assert caught.value.field == "vocab_size"


def test_the_byte_tokenizer_has_symbols_that_no_text_has(tmp_path):
    own = load_tokenizer("bytes", recall=True)
    own.save(tmp_path)
    saved = load_tokenizer(tmp_path)
    assert own.symbols == saved.symbols == Symbols(258) and own.vocab_size == saved.vocab_size == 258 + 8 * 16
    assert load_tokenizer("bytes").symbols is None
    text = "a <|question_0|> of bytes"
    for tokenizer in (own, saved):
        np.testing.assert_array_equal(tokenizer.encode(text), list(text.encode()))
        assert tokenizer.decode([*text.encode(), 258, 300]) == text


@pytest.mark.parametrize("missing", ["<|question_0|>", "<|question_3|>", "<|answer_1_2|>"])
def test_symbols_of_which_one_is_missing_are_none(missing):
    ids = dict(zip(SYMBOLS.names, SYMBOLS.all.tolist()))
    assert named_symbols({"a": 0, **ids}) == SYMBOLS
    assert named_symbols({name: i for name, i in ids.items() if name != missing}) is None


def batches_of(recall, rows=None):
    texts = TextSource([{"id": str(i), "text": chr(97 + i) * 100} for i in range(8)], "id", "text")
    return training_batches(texts, load_tokenizer("bytes"), 8, 64, 0, rows=rows, streams=2, recall=recall)


def test_a_share_of_packed_rows_becomes_recall_whoever_holds_them():
    recall = RecallRows(0.25, Symbols(258), 256, 3)
    whole, text, parts = batches_of(recall), batches_of(None), [batches_of(recall, r) for r in ((0, 1, 5), (3, 4, 7))]
    for _ in range(3):
        batch, plain = next(whole), next(text)
        assert set(np.flatnonzero((batch["tokens"] >= 258).any(axis=1))) == {3, 7}
        assert set(np.flatnonzero((batch["tokens"] != plain["tokens"]).any(axis=1))) == {3, 7}
        assert (batch["tokens"][[3, 7], 0] == 256).all()
        for part, rows in zip(map(next, parts), ([0, 1, 5], [3, 4, 7])):
            for name, values in part.items():
                np.testing.assert_array_equal(values, batch[name][rows])
    resumed = batches_of(recall)
    resumed.set_state(whole.get_state())
    np.testing.assert_array_equal(next(resumed)["tokens"], next(whole)["tokens"])
    with pytest.raises(InputError, match="share of recall"):
        batches_of(None).set_state(whole.get_state())
