"""Perplexity against plain float64 loops over transformers' logits, and the windows against their definition."""

import dataclasses
import functools
import itertools
import json

import jax
import numpy as np
import pytest
import scipy.special
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.nll import make_token_nll, tail_nll
from rope_jax.evaluation.perplexity.positions import perplexity_by_position, position_edges
from rope_jax.evaluation.perplexity.sliding import Window, perplexity, sliding_windows
from rope_jax.interop.huggingface import read_model
from rope_jax.model.kernels import splash_attention
from rope_jax.rope.embedding import ScaleVector
from rope_jax.sharding import make_mesh, row_sharding
from tests.interop.references import quiet_transformers, write_random_llama
from tests.interop.stories import write_stories260k

BOS = 1
WINDOW, STRIDE = 24, 7


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random LLaMA here, and the float64 log probabilities that transformers gives after some tokens."""
    folder = write_random_llama(tmp_path_factory.mktemp("llama"))
    ours = read_model(folder)
    with quiet_transformers():
        theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)

    @functools.cache
    def log_probabilities(tokens):
        with torch.no_grad():
            logits = theirs(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
        return scipy.special.log_softmax(logits, axis=-1)

    config = dataclasses.replace(ours.config, attention_chunk=8)
    return functools.partial(make_token_nll(config, chunk=5), ours.params, ours.rope), log_probabilities


@pytest.fixture(scope="module")
def documents():
    # Shorter than a window, as long as one, one token more, a multiple of strides more, and longer yet.
    rng = np.random.default_rng(0)
    lengths = (9, WINDOW - 1, WINDOW, WINDOW + 1, WINDOW + 2 * STRIDE, 70)
    return [rng.integers(2, 96, n).astype(np.int32) for n in lengths]


def nll_of_window(log_probabilities, document, start, end, bos):
    """NLL of tokens start .. end - 1 of a document within that window; NaN where there is no context."""
    tokens = ([BOS] if bos else []) + document[start:end].tolist()
    nll = -log_probabilities(tuple(tokens))[np.arange(len(tokens) - 1), tokens[1:]]
    return nll if bos else np.concatenate([[np.nan], nll])


def expected(log_probabilities, documents, convention, bos):
    """The three conventions, straight from their definitions."""
    held = WINDOW - 1 if bos else WINDOW
    total, count, window_means = 0.0, 0, []
    for document in documents:
        n = len(document)
        if convention == "token":
            # Token by token: the window it is scored in ends at the first of held, held + S, ... beyond it.
            for j in range(n):
                end = min(n, held + max(0, -(-(j + 1 - held) // STRIDE)) * STRIDE)
                start = max(0, end - held)
                nll = nll_of_window(log_probabilities, document, start, end, bos)[j - start]
                if not np.isnan(nll):
                    total, count = total + nll, count + 1
            continue
        # As in the scripts: windows begin every S tokens until one reaches the end.
        before = 0
        for start in range(0, n, STRIDE):
            end = min(start + held, n)
            if convention == "longlora":
                start = max(0, end - held)
                nll = nll_of_window(log_probabilities, document, start, end, bos)
            else:
                nll = nll_of_window(log_probabilities, document, start, end, bos)[before - start :]
            total, count = total + np.nansum(nll), count + np.sum(~np.isnan(nll))
            window_means.append(np.nanmean(nll))
            before = end
            if end == n:
                break
    return np.exp(np.mean(window_means) if convention == "yarn" else total / count), count


@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no bos"])
@pytest.mark.parametrize("convention", ["token", "yarn", "longlora"])
def test_conventions_match_a_loop_over_transformers_logits(model, documents, convention, bos):
    token_nll, log_probabilities = model
    got = perplexity(
        token_nll,
        documents,
        WINDOW,
        STRIDE,
        bos_id=BOS if bos else None,
        convention=convention,
        batch_size=4,
        document_bytes=[3 * len(d) for d in documents],
        words=40,
    )
    want, count = expected(log_probabilities, documents, convention, bos)
    np.testing.assert_allclose(got.perplexity, want, rtol=1e-5)
    assert got.tokens == count
    assert (got.convention, got.documents, got.window, got.stride) == (convention, 6, WINDOW, STRIDE)
    assert got.interval[0] < got.perplexity < got.interval[1]
    if convention == "longlora":
        assert got.bits_per_byte is None and got.word_perplexity is None
    else:
        # Every token of every document is scored once; without BOS, the first of each is not.
        assert got.tokens == sum(map(len, documents)) - (0 if bos else 6)
        np.testing.assert_allclose(got.bits_per_byte, got.nll / (3 * sum(map(len, documents))) / np.log(2))
        np.testing.assert_allclose(got.word_perplexity, np.exp(got.nll / 40))
    if convention == "token":
        np.testing.assert_allclose(np.exp(got.nll / got.tokens), got.perplexity)


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    """A trained model here, the float64 log probabilities that transformers gives, and its tokenizer."""
    folder = write_stories260k(shared / "data", tmp_path_factory.mktemp("stories260k"))
    ours = read_model(folder)
    with quiet_transformers():
        theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)

    @functools.cache
    def log_probabilities(tokens):
        with torch.no_grad():
            return scipy.special.log_softmax(theirs(torch.tensor([tokens])).logits[0].numpy(), axis=-1)

    score = functools.partial(make_token_nll(ours.config, chunk=16), ours.params, ours.rope)
    return score, log_probabilities, load_tokenizer(folder)


@pytest.mark.parametrize("convention", ["token", "yarn", "longlora"])
def test_a_real_model_has_the_perplexity_of_a_loop_over_transformers_logits(real, convention):
    score, log_probabilities, tokenizer = real
    text = "Lily went to the park with her mom. She saw a big dog and a red ball. The dog was sad. "
    documents = [tokenizer.encode(text * count)[: 40 + 9 * count] for count in (1, 2, 4)]
    got = perplexity(score, documents, WINDOW, STRIDE, bos_id=BOS, convention=convention, batch_size=4)
    want, count = expected(log_probabilities, documents, convention, bos=True)
    # The agreed bound; float32 is some 1e-6 off.
    np.testing.assert_allclose(got.perplexity, want, rtol=1e-4)
    assert got.tokens == count


@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no bos"])
def test_positions_match_a_loop_over_transformers_logits(model, documents, bos):
    token_nll, log_probabilities = model
    edges = (1, 2, 4, 8, 15, WINDOW)
    got = perplexity_by_position(token_nll, documents, WINDOW, bos_id=BOS if bos else None, edges=edges, batch_size=3)
    held = WINDOW - 1 if bos else WINDOW
    nlls, owners = [], []
    for index, document in enumerate(documents):
        for start in range(0, len(document) - held + 1, held):
            nll = nll_of_window(log_probabilities, document, start, start + held, bos)
            nlls.append(nll[~np.isnan(nll)])
            owners.append(index)
    nlls = np.array(nlls)
    # Windows of one document are no independent draws: documents are drawn, with all their windows.
    of_document = (np.unique(owners)[:, None] == owners).astype(float)
    drawn = np.random.default_rng(1).multinomial(len(of_document), [1 / len(of_document)] * len(of_document), 20_000)
    assert nlls.shape == (got.windows, WINDOW - 1)
    assert got.documents == sum(len(document) >= held for document in documents)
    for bucket, start, end in zip(got.buckets, edges, edges[1:]):
        assert (bucket.start, bucket.end) == (start, end)
        # Position p is predicted from p tokens, and is column p - 1 here.
        columns = nlls[:, start - 1 : end - 1]
        assert bucket.tokens == columns.size
        np.testing.assert_allclose(bucket.nll, columns.mean(), rtol=1e-5)
        np.testing.assert_allclose(bucket.perplexity, np.exp(columns.mean()), rtol=1e-5)
        sums = of_document @ columns.mean(axis=1)
        error = ((drawn @ sums) / (drawn @ of_document.sum(axis=1))).std()
        # The standard deviation of 1,000 resamples has itself one of some 3%.
        np.testing.assert_allclose(bucket.standard_error, error, rtol=0.1)
        assert bucket.interval[0] < bucket.perplexity < bucket.interval[1]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 200), st.integers(1, 40), st.data())
def test_windows_score_every_token_once_with_all_the_context_they_allow(n, window, data):
    stride = data.draw(st.integers(1, window))
    windows = sliding_windows(n, window, stride)
    assert [j for w in windows for j in range(w.first_scored, w.end)] == list(range(n))
    for i, w in enumerate(windows):
        assert w.end - w.start == min(window, n)
        assert w.start <= w.first_scored < w.end
        scored = w.end - w.first_scored
        assert scored == min(window, n) if i == 0 else scored == stride or (scored < stride and w.end == n)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.data())
def test_windows_without_a_full_last_one_start_every_stride(n, window, data):
    stride = data.draw(st.integers(1, window))
    windows = sliding_windows(n, window, stride, full_last=False)
    full = sliding_windows(n, window, stride)
    assert [w.start for w in windows] == [i * stride for i in range(len(windows))]
    assert [(w.first_scored, w.end) for w in windows] == [(w.first_scored, w.end) for w in full]


def test_windows_of_a_worked_example():
    assert sliding_windows(13, 6, 3) == [
        Window(0, 6, 0),
        Window(3, 9, 6),
        Window(6, 12, 9),
        Window(7, 13, 12),
    ]
    assert sliding_windows(4, 6, 3) == [Window(0, 4, 0)]
    assert sliding_windows(0, 6, 3) == []


def uniform(vocab):
    """A model that knows nothing."""

    def token_nll(tokens, wanted):
        return np.where(wanted, np.log(vocab), 0.0).astype(np.float32)

    return token_nll


@pytest.mark.parametrize("convention", ["token", "yarn", "longlora"])
def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(documents, convention):
    got = perplexity(uniform(96), documents, WINDOW, STRIDE, bos_id=None, convention=convention, batch_size=5)
    np.testing.assert_allclose(got.perplexity, 96, rtol=1e-5)
    np.testing.assert_allclose(got.interval, (96, 96), rtol=1e-5)


def test_rows_hold_bos_and_never_exceed_the_window(documents):
    shapes, rows = set(), []

    def token_nll(tokens, wanted):
        shapes.add(tokens.shape)
        rows.extend(tokens[np.any(wanted, axis=1)])
        # The last column predicts nothing that is in the row.
        assert not wanted[:, -1].any()
        return np.zeros(tokens.shape, np.float32)

    got = perplexity(token_nll, documents, WINDOW, STRIDE, bos_id=BOS, batch_size=4)
    assert shapes == {(4, WINDOW)}
    assert len(rows) == got.windows
    assert all(row[0] == BOS for row in rows)


def test_what_is_not_wanted_is_not_counted(documents):
    def token_nll(tokens, wanted):
        return np.where(wanted, 1.0, np.nan)

    np.testing.assert_allclose(perplexity(token_nll, documents, WINDOW, STRIDE, bos_id=BOS).perplexity, np.e)


def test_one_document_has_no_interval_and_the_result_is_plain_json(documents):
    single = perplexity(uniform(8), documents[-1:], WINDOW, STRIDE, bos_id=BOS)
    assert single.interval is None and single.documents == 1
    several = perplexity(uniform(8), documents, WINDOW, STRIDE, bos_id=BOS)
    positions = perplexity_by_position(uniform(8), documents, WINDOW, bos_id=BOS)
    one_document = perplexity_by_position(uniform(8), documents[-1:], WINDOW, bos_id=BOS)
    assert one_document.windows > 1
    assert one_document.buckets[0].interval is None and one_document.buckets[0].standard_error is None
    for result in (single, several, positions, one_document):
        assert json.loads(json.dumps(dataclasses.asdict(result)))["window"] == WINDOW


def test_intervals_are_seeded(model, documents):
    def interval(seed):
        return perplexity(model[0], documents, WINDOW, STRIDE, bos_id=BOS, batch_size=4, seed=seed).interval

    assert interval(0) == interval(0) != interval(1)


def test_progress_wraps_the_batches(documents):
    seen = []

    def progress(batches):
        seen.append(len(batches))
        return batches

    got = perplexity(uniform(8), documents, WINDOW, STRIDE, bos_id=BOS, batch_size=2, progress=progress)
    assert seen == [-(-got.windows // 2)]


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 70000), st.none() | st.integers(8, 8192))
def test_edges_tile_the_window_and_meet_the_context(window, context):
    edges = position_edges(window, context)
    assert edges[0] == 1 and edges[-1] == window
    assert np.all(np.diff(edges) > 0)
    assert all(2 * a >= b for a, b in itertools.pairwise(edges))
    if context is not None and context < window:
        assert context in edges


def test_edges_are_finer_around_the_context():
    assert position_edges(16) == (1, 2, 4, 8, 16)
    assert position_edges(40, 16) == (1, 2, 4, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 40)


def test_scale_vectors_share_a_compilation_and_change_the_result(tmp_path, caplog):
    ours = read_model(write_random_llama(tmp_path))
    score = make_token_nll(ours.config, chunk=8)
    tokens = np.arange(2, 34, dtype=np.int32).reshape(2, 16)
    wanted = np.ones(tokens.shape, bool)
    ropes = [ScaleVector.create(np.full(6, s)) for s in (1.0, 2.0)]
    first = score(ours.params, ropes[0], tokens, wanted)
    with jax.log_compiles():
        results = [first, score(ours.params, ropes[1], tokens, wanted)]
    assert not [message for message in caplog.messages if "Compiling" in message]
    assert np.abs(results[0] - results[1]).max() > 1e-3
    assert not np.any(results[0][:, -1])


def test_scores_are_computed_by_the_backend_of_the_config(tmp_path, monkeypatch):
    """TPUs' kernel, interpreted, in every layer, of which the last one has fewer queries."""
    calls = []

    def kernel(*arrays, window):
        calls.append([array.shape[:2] for array in arrays])
        return splash_attention(*arrays, window=window, interpret=True)

    monkeypatch.setattr("rope_jax.model.backends.splash_attention", kernel)
    ours = read_model(write_random_llama(tmp_path))
    tokens = np.random.default_rng(0).integers(2, 96, (4, 40)).astype(np.int32)
    wanted = np.zeros(tokens.shape, bool)
    wanted[:, 30:] = True
    mesh = make_mesh(2, 1, 2, jax.devices()[:4])
    config = dataclasses.replace(ours.config, attention="splash")
    got, want = (
        make_token_nll(c, 8, sharding)(ours.params, ours.rope, tokens, wanted)
        for c, sharding in ((config, row_sharding(mesh)), (ours.config, None))
    )
    # float32 sums in another order.
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert calls == [[(2, 40)] * 4] * 2


def test_rows_over_devices_score_the_same(tmp_path, documents):
    ours = read_model(write_random_llama(tmp_path))
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    # Weights split over one of the axes that rows are split over, as fully sharded training leaves them.
    spread = jax.tree.map(
        lambda x: jax.device_put(x, NamedSharding(mesh, P(*[None] * (x.ndim - 1), "fsdp"))), ours.params
    )
    sharded = make_token_nll(ours.config, 8, NamedSharding(mesh, P(("data", "fsdp"))))
    single = make_token_nll(ours.config, 8)
    got, want = (
        perplexity(functools.partial(f, p, ours.rope), documents, WINDOW, STRIDE, bos_id=BOS, batch_size=4)
        for f, p in ((sharded, spread), (single, ours.params))
    )
    np.testing.assert_allclose(got.perplexity, want.perplexity, rtol=1e-5)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A model of three layers, and its scoring."""
    ours = read_model(write_random_llama(tmp_path_factory.mktemp("deep"), num_hidden_layers=3))
    config = dataclasses.replace(ours.config, attention_chunk=8)
    return ours, functools.partial(make_token_nll(config, 5), ours.params)


@pytest.mark.parametrize("first", [0, 9, 21])
def test_scoring_the_end_of_a_window_equals_scoring_it_all(deep, first):
    ours, score = deep
    tokens = np.random.default_rng(0).integers(2, 96, (3, 40)).astype(np.int32)
    whole = score(ours.rope, tokens, np.ones(tokens.shape, bool))
    wanted = np.zeros(tokens.shape, bool)
    wanted[1, first:30] = True
    # The same float32 sums, over chunks that begin elsewhere.
    np.testing.assert_allclose(score(ours.rope, tokens, wanted), np.where(wanted, whole, 0), rtol=2e-5, atol=2e-5)
    assert not score(ours.rope, tokens, np.zeros(tokens.shape, bool)).any()


def test_scoring_forms_no_array_of_all_logits(tmp_path):
    ours = read_model(write_random_llama(tmp_path, vocab_size=8192, num_hidden_layers=1))
    t = 512
    # Attention's own chunks are kept small: it is the logits that are looked for.
    config = dataclasses.replace(ours.config, attention_chunk=16)
    compiled = (
        jax.jit(functools.partial(tail_nll, config=config, chunk=32, tail=t))
        .lower(
            ours.params,
            ours.rope,
            jax.ShapeDtypeStruct((2, t), np.int32),
            jax.ShapeDtypeStruct((2, t), bool),
        )
        .compile()
    )
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * t * 8192 * 4 / 4


def refused(field, function, *arguments, **options):
    with pytest.raises(InputError) as error:
        function(*arguments, **options)
    assert error.value.field == field
    return str(error.value)


def test_unusable_requests_are_named(documents):
    score = functools.partial(perplexity, uniform(8), documents, bos_id=BOS)
    refused("convention", score, WINDOW, STRIDE, convention="word")
    for stride in (0, WINDOW):
        refused("stride", score, WINDOW, stride)
    refused("document_bytes", score, WINDOW, STRIDE, document_bytes=[1])
    assert "no document" in refused("", perplexity, uniform(8), [np.array([5])], WINDOW, STRIDE, bos_id=None)
    by_position = functools.partial(perplexity_by_position, uniform(8), documents, bos_id=BOS)
    assert "longest has 70 tokens of the 99" in refused("window", by_position, 100)
    for edges in ((1, 5), (2, WINDOW), (1, 9, 9, WINDOW)):
        refused("edges", by_position, WINDOW, edges=edges)
    refused("stride", sliding_windows, 10, 5, 6)
