"""Greedy decoding against transformers' `generate` on tiny random models."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from rope_jax.errors import InputError
from rope_jax.interop.huggingface import read_model
from rope_jax.model import decode
from rope_jax.model.cache import empty_cache
from rope_jax.model.generate import Stops, bucket_length, greedy, greedy_batches
from rope_jax.model.kernels import splash_attention
from rope_jax.model.llama import Llama, param_shardings
from rope_jax.rope.embedding import ScaleVector, identity
from rope_jax.sharding import cache_sharding, make_mesh
from tests.interop.references import quiet_transformers, write_random_llama

PAD = 95  # never in a prompt


def load(folder, **overrides):
    """The same random LLaMA in transformers and here: model, params and config."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "max_position_embeddings": 256}
    write_random_llama(folder, **(sizes | overrides))
    with quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ours = read_model(folder)
    return model, ours.params, dataclasses.replace(ours.config, attention_chunk=16)


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    return load(tmp_path_factory.mktemp("untied"))


@pytest.fixture(scope="module", params=[False, True], ids=["head", "tied"])
def pair(request, tmp_path_factory):
    return load(tmp_path_factory.mktemp("pair"), tie_word_embeddings=request.param)


def continuations(model, prompts, max_new_tokens, eos_id=None, **options):
    """What transformers generates, all prompts in one left-padded, attention-masked batch."""
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    model.generation_config.eos_token_id = eos_id
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=PAD,
        **options,
    )
    rows = [list(row) for row in out[:, width:].numpy()]
    return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]


def random_prompts(lengths, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, PAD, length).astype(np.int32) for length in lengths]


def test_batch_of_unequal_lengths_equals_transformers(pair):
    model, params, config = pair
    prompts = random_prompts([1, 5, 16, 17, 40, 63])
    got = greedy(params, config, identity(8), prompts, 24)
    want = continuations(model, prompts, 24)
    for row, expected in zip(got, want):
        assert row.dtype == np.int32
        np.testing.assert_array_equal(row, expected)


def test_kernels_read_whole_prompts_on_each_devices_rows(untied, monkeypatch):
    model, params, config = untied
    shapes = []

    def kernel(query, key, value, segment_ids, *, window):
        shapes.append((query.shape, key.shape))
        return splash_attention(query, key, value, segment_ids, window=window, interpret=True)

    monkeypatch.setattr("rope_jax.model.backends.splash_attention", kernel)
    config, mesh = dataclasses.replace(config, attention="splash"), make_mesh(2, 1, 1, jax.devices()[:2])
    prompts = random_prompts([5, 17, 40, 21])
    params = jax.device_put(params, param_shardings(config, mesh))
    got = greedy(params, config, identity(8), prompts, 4, chunk=16, cache_sharding=cache_sharding(mesh))
    assert [row.tolist() for row in got] == continuations(model, prompts, 4)
    # Two of four rows, at a bucket's length; the last layer reads its one query from the cache.
    assert shapes == [((2, 48, 4, 8), (2, 48, 2, 8))] * (config.num_layers - 1)


def test_a_sliding_window_holds_while_decoding(tmp_path):
    # Prompts and continuations on both sides of the window.
    model, params, config = load(tmp_path, architecture="mistral", sliding_window=12)
    prompts = random_prompts([1, 11, 40])
    for row, expected in zip(greedy(params, config, identity(8), prompts, 24), continuations(model, prompts, 24)):
        np.testing.assert_array_equal(row, expected)


def test_rows_end_at_eos_as_in_transformers(pair):
    model, params, config = pair
    prompts = random_prompts([3, 9, 20, 33], seed=2)
    free = continuations(model, prompts, 20)
    # An end that the first row meets midway and the others earlier, later or never.
    eos_id = int(free[0][7])
    got = greedy(params, config, identity(8), prompts, 20, stops=Stops([eos_id]))
    want = continuations(model, prompts, 20, eos_id)
    assert {len(row) for row in want} != {20}
    for row, expected in zip(got, want):
        np.testing.assert_array_equal(row, expected)


def test_eos_at_once_gives_an_empty_answer(untied):
    _, params, config = untied
    prompts = random_prompts([6])
    first = int(greedy(params, config, identity(8), prompts, 5)[0][0])
    assert greedy(params, config, identity(8), prompts, 5, stops=Stops([first]))[0].shape == (0,)


@pytest.mark.slow
def test_small_batches_come_as_they_complete_with_the_same_tokens(untied):
    _, params, config = untied
    prompts = random_prompts([30, 3, 14, 5, 9])
    batches = list(greedy_batches(params, config, identity(8), prompts, 12, batch_size=2))
    assert [[row for row, _ in batch] for batch in batches] == [[0], [4, 2], [1, 3]]
    whole = greedy(params, config, identity(8), prompts, 12)
    for row, tokens in itertools.chain(*batches):
        np.testing.assert_array_equal(tokens, whole[row])


def test_scale_vector_reaches_prefill_and_steps(untied):
    _, params, config = untied
    rope = ScaleVector.create(np.linspace(1, 8, 4), 1.1)
    prompt = random_prompts([30])[0]
    got = greedy(params, config, rope, [prompt], 16)[0]
    # Decoding without a cache: a full pass for each new token.
    row = np.zeros((1, len(prompt) + 16), np.int32)
    row[0, : len(prompt)] = prompt
    full_pass = jax.jit(Llama(config).apply)
    for end in range(len(prompt), row.shape[1]):
        row[0, end] = np.argmax(full_pass({"params": params}, row, rope)[0, end - 1])
    np.testing.assert_array_equal(got, row[0, len(prompt) :])
    assert list(got) != list(greedy(params, config, identity(8), [prompt], 16)[0])


def test_prompts_in_chunks_equal_transformers(pair):
    (model, params, config), chunk = pair, 16
    # One chunk, one token more, several, and one row that is padding throughout the first chunks.
    prompts = random_prompts([chunk, chunk + 1, 150, 3], seed=3)
    got = greedy(params, config, identity(8), prompts, 40, chunk=chunk)
    for row, expected in zip(got, continuations(model, prompts, 40)):
        np.testing.assert_array_equal(row, expected)


def test_biases_and_norms_of_other_architectures_decode(tmp_path):
    model, params, config = load(tmp_path, architecture="qwen3", attention_bias=True)
    prompts = random_prompts([5, 30, 41], seed=4)
    got = greedy(params, config, identity(config.head_dim), prompts, 30, chunk=16)
    for row, expected in zip(got, continuations(model, prompts, 30)):
        np.testing.assert_array_equal(row, expected)


def test_each_row_has_its_own_length(untied):
    model, params, config = untied
    prompts = random_prompts([7, 30, 12])
    limits = [3, 40, 1]
    got = greedy(params, config, identity(8), prompts, limits)
    for row, expected, limit in zip(got, continuations(model, prompts, 40), limits):
        np.testing.assert_array_equal(row, expected[:limit])


def test_a_row_does_not_depend_on_its_batch(untied):
    _, params, config = untied
    prompts = random_prompts([2, 70, 33, 16])
    together = greedy(params, config, identity(8), prompts, 20)
    for row, prompt in list(zip(together, prompts))[:2]:
        np.testing.assert_array_equal(row, greedy(params, config, identity(8), [prompt], 20)[0])


def test_no_stop_token_comes_before_the_least_length(untied):
    model, params, config = untied
    prompts = random_prompts([6, 14], seed=2)
    free = continuations(model, prompts, 40)
    eos_id = int(free[0][0])  # would end the first row at once
    got = greedy(params, config, identity(8), prompts, 40, stops=Stops([eos_id], min_new_tokens=35))
    want = continuations(model, prompts, 40, eos_id, min_new_tokens=35)
    assert len(want[0]) >= 35
    for row, expected in zip(got, want):
        np.testing.assert_array_equal(row, expected)


def test_a_stop_string_ends_after_the_token_that_completes_it(untied):
    _, params, config = untied
    prompts = random_prompts([9, 21], seed=5)
    free = greedy(params, config, identity(8), prompts, 50)

    def text(ids):
        return "".join(f"<{i}>" for i in ids)

    # Runs over the end of one token and the beginning of another, after the first segment of steps.
    string = f"{free[0][38]}><{free[0][39]}"
    end = next(n for n in range(1, 51) if string in text(free[0][:n]))
    got = greedy(params, config, identity(8), prompts, 50, stops=Stops(strings=[string], decode=text))
    np.testing.assert_array_equal(got[0], free[0][:end])
    assert string in text(got[0]) and string not in text(got[0][:-1])
    if string not in text(free[1]):
        np.testing.assert_array_equal(got[1], free[1])


@pytest.mark.slow
def test_many_lengths_and_scale_vectors_share_few_compilations(untied):
    _, params, config = untied
    config = dataclasses.replace(config, context=135, num_layers=1)  # not compiled by another test
    params = params | {"layers": jax.tree.map(lambda x: x[:1], params["layers"])}
    before = decode.prefill._cache_size(), decode.decode._cache_size()
    for length in range(1, 130, 6):
        rope = ScaleVector.create(np.full(4, 1.0 + length))
        greedy(params, config, rope, random_prompts([length]), 8, chunk=64)
    prefills, decodes = decode.prefill._cache_size() - before[0], decode.decode._cache_size() - before[1]
    # 22 lengths; caches of 32, 48, 64, 80, 96, 112, 128 or 160 slots.
    assert decodes <= 8
    # Each reads prompts in pieces of 64 tokens, and before them one of 16, 32, 48 or 64.
    assert prefills <= 18


def test_prefill_memory_does_not_grow_with_the_prompt(untied):
    config = dataclasses.replace(untied[2], vocab_size=4096)

    def temporary(slots):
        weights = jax.eval_shape(lambda: decode.decoding_weights(untied[1], untied[2]))
        weights |= {"embedding": jax.ShapeDtypeStruct((4096, 32), jnp.float32)}
        weights |= {"head": jax.ShapeDtypeStruct((4096, 32), jnp.float32)}
        compiled = decode.prefill.lower(
            decode.Decoder(weights, jax.eval_shape(lambda: identity(8)), config),
            jax.ShapeDtypeStruct((2, 64), jnp.int32),
            jax.eval_shape(lambda: empty_cache(config, np.zeros(2, np.int32), slots, "float32")),
            jax.ShapeDtypeStruct((4096,), bool),
        ).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # Neither logits of all tokens, nor scores over all slots, nor a second cache.
    assert temporary(8192) < min(2 * 64 * 4096 * 4, 2 * 4 * 64 * 8192 * 4, 2 * 2 * 8192 * 8 * 4 * 6)


@pytest.mark.parametrize("sizes", [(4, 2, 1), (2, 2, 2)], ids=str)
def test_a_mesh_gives_the_same_tokens(untied, sizes):
    model, params, config = untied
    mesh = make_mesh(*sizes)
    spread = jax.device_put(params, param_shardings(config, mesh))
    prompts = random_prompts([4, 9, 20, 12, 33, 7])
    got = greedy(spread, config, identity(8), prompts, 40, batch_size=8, cache_sharding=cache_sharding(mesh))
    for row, expected in zip(got, continuations(model, prompts, 40)):
        np.testing.assert_array_equal(row, expected)


def test_the_cache_is_donated_and_has_the_dtype_asked_for(untied):
    _, params, config = untied
    decoder = decode.Decoder(decode.decoding_weights(params, config), identity(8), config)
    free = np.zeros(config.vocab_size, bool)
    cache = empty_cache(config, np.zeros(1, np.int32), 32, "bfloat16")
    _, filled = decode.prefill(decoder, np.ones((1, 16), np.int32), cache, free)
    assert all(x.is_deleted() for x in cache.keys + cache.values)
    assert all(x.dtype == jnp.bfloat16 for x in filled.keys + filled.values)
    assert int(filled.used) == 16


def test_bfloat16_cache_follows_the_float32_one_at_first(untied):
    _, params, config = untied
    prompts = random_prompts([40, 17])
    for exact, rounded in zip(
        greedy(params, config, identity(8), prompts, 8),
        greedy(params, config, identity(8), prompts, 8, cache_dtype="bfloat16"),
    ):
        # Keys and values rounded to 8 bits move logits by about 1%; the first choices of this model are clearer.
        np.testing.assert_array_equal(exact[:1], rounded[:1])
        assert len(rounded) == 8


def test_bfloat16_model_decodes(untied):
    _, params, config = untied
    config = dataclasses.replace(config, dtype="bfloat16")
    assert decode.decoding_weights(params, config)["layers"][0]["attention"]["q"]["kernel"].dtype == jnp.bfloat16
    assert len(greedy(params, config, identity(8), random_prompts([9]), 8)[0]) == 8


@pytest.mark.parametrize("length", [1, 15, 16, 17, 100, 127, 128, 129, 4095, 4096, 4097, 30000])
def test_buckets_hold_the_prompt_with_a_quarter_to_spare_at_most(length):
    assert length <= bucket_length(length) <= length + max(16, length / 4)
    assert bucket_length(bucket_length(length)) == bucket_length(length)


@pytest.mark.parametrize(
    ("prompts", "limit", "options", "field"),
    [
        ([[1]], 0, {}, "max_new_tokens"),
        ([[1]], 1, {"batch_size": 0}, "batch_size"),
        ([[1], []], 1, {}, "prompts"),
        ([[96]], 1, {}, "prompts"),
        ([[1]], 1, {"chunk": 20}, "chunk"),
        ([[1]], 1, {"stops": Stops([96])}, "stops"),
    ],
)
def test_bad_requests_are_named(untied, prompts, limit, options, field):
    with pytest.raises(InputError, match=f"^`{field}`") as error:
        greedy({}, untied[2], identity(8), [np.array(prompt, np.int32) for prompt in prompts], limit, **options)
    assert error.value.field == field


def test_no_prompts_and_bad_stops(untied):
    assert greedy({}, untied[2], identity(8), [], 1) == []
    for strings, field in (("stop", "strings"), (["stop"], "decode")):
        with pytest.raises(InputError) as error:
            Stops(strings=strings)
        assert error.value.field == field
