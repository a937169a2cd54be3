"""The benchmark of recall: its texts, its count against one by hand on given logits, its refusals."""

import dataclasses

import jax
import numpy as np
import pytest

from rope_jax.data.recall import Symbols
from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation import recall as benchmark
from rope_jax.evaluation.benchmark import Setting, Subject
from rope_jax.evaluation.engine import prepare
from rope_jax.evaluation.recall import Recall, recall_rows
from rope_jax.evaluation.texts import Texts
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import identity
from rope_jax.sharding import make_mesh

BYTES = load_tokenizer("bytes", recall=True)
SYMBOLS = Symbols(258)
MODEL = LlamaConfig(BYTES.vocab_size, 32, 48, 1, 2, 2, 16, context=64)


@pytest.fixture
def setting():
    documents = [np.frombuffer(b"every pair turns by an angle " * 9, np.uint8).astype(np.int32)] * 3
    texts = Texts(documents, [len(document) for document in documents], documents)
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    return Setting(MODEL, BYTES, mesh, 64, (64, 128), lambda: texts, batch=4)


def test_every_key_is_asked_for_once_in_the_end_of_a_text(setting):
    rows, places = recall_rows(setting, SYMBOLS, 96, 5)
    assert rows.shape == (5, 96) and places.shape == (5, 8) and (rows[:, 0] == 256).all()
    for row, facts in zip(rows, places):
        questions, answers = row[-16::2], row[-15::2]
        assert set(questions) == set(range(258, 266))
        np.testing.assert_array_equal((answers - 266) // 15, questions - 258)
        np.testing.assert_array_equal(row[facts], answers)
        assert set(np.flatnonzero(row[:-16] >= 258)) == set(facts)
        # One fact in each eighth of the 79 tokens between BOS and the questions.
        np.testing.assert_array_equal(np.digitize(np.sort(facts) - 1, np.linspace(0, 79, 9).astype(int)), range(1, 9))


def test_hits_are_counted_by_depth_on_given_logits(setting, monkeypatch):
    """Logits that know the answers to facts below a place in the text, and are wrong, by little, on others."""
    known = {64: 20, 128: 70}

    def states(config, sharding):
        def all_states(params, rope, tokens, first, tail):
            length = tokens.shape[1]
            # As hidden states the wanted token itself: after a question, what stands at the place of its fact.
            question = tokens[:, -tail:]
            place = jax.numpy.argmax((tokens[:, None] - 266) // 15 == (question - 258)[..., None], axis=-1)
            answer = jax.numpy.take_along_axis(tokens, place, axis=1)
            told = jax.numpy.where(place < known[length], answer, 266 + (answer - 265) % 120)
            return jax.nn.one_hot(told, MODEL.vocab_size)

        return all_states

    monkeypatch.setattr("rope_jax.evaluation.nll._tail_states", states)
    monkeypatch.setattr("rope_jax.evaluation.nll.head_kernel", lambda params, config: jax.numpy.eye(MODEL.vocab_size))
    monkeypatch.setattr(
        benchmark, "make_continuation_scores", benchmark.make_continuation_scores.__wrapped__
    )  # a cache would keep these logits
    evaluation = prepare({"recall": Recall(texts=6)}, setting)  # six of the eight rows of two batches
    found = evaluation.run("recall", Subject(setting, None, identity(16)))
    for i, (length, limit) in enumerate(known.items()):
        _, places = recall_rows(setting, SYMBOLS, length, 6)
        hits = np.sort(places, axis=1) < limit
        assert 0 < hits.mean() < 1
        assert found["table"]["recall"][str(length)]["mean"] == pytest.approx(100 * hits.mean())
        np.testing.assert_allclose(found["grids"]["recall"]["mean"][i], 100 * hits.mean(axis=0))
        np.testing.assert_allclose(found["by_sample"][str(length)], hits.mean(axis=1))
    assert found["grids"]["recall"]["lengths"] == [64, 128] and found["samples"] == 12
    worse = {**found, "by_sample": {name: [0.0] * 6 for name in found["by_sample"]}}
    apart = evaluation.compare("recall", {"own": worse, "pi": found}, "own")["pi"]
    assert (
        apart["64"]["difference"] == pytest.approx(found["table"]["recall"]["64"]["mean"]) and apart["64"]["units"] == 6
    )


def refused(setting, **fields):
    (missing,) = prepare({"recall": Recall(**fields)}, setting).not_run
    return missing.error


def test_what_cannot_be_measured_is_refused(setting):
    plain = dataclasses.replace(setting, tokenizer=load_tokenizer("bytes"))
    error = refused(plain)
    assert error.field == "suite" and "no tokens of synthetic recall" in str(error)
    assert refused(setting, lengths=(63,)).field == "lengths"
    assert refused(setting, lengths=(784,)).field == "path"
    with pytest.raises(InputError) as caught:
        Recall(texts=0)
    assert caught.value.field == "texts"
