"""Greedy decoding against transformers' `generate` on tiny random models."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rope_jax.errors import InputError
from rope_jax.interop.huggingface import read_model
from rope_jax.model import generate
from rope_jax.model.generate import bucket_length, greedy
from rope_jax.model.llama import Llama, init_params
from rope_jax.rope.embedding import ScaleVector, identity
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


def continuations(model, prompts, max_new_tokens, eos_id=None):
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
    got = greedy(params, config, identity(8), prompts, 20, eos_id=eos_id)
    want = continuations(model, prompts, 20, eos_id)
    assert {len(row) for row in want} != {20}
    for row, expected in zip(got, want):
        np.testing.assert_array_equal(row, expected)


def test_eos_at_once_gives_an_empty_answer(untied):
    _, params, config = untied
    prompts = random_prompts([6])
    first = int(greedy(params, config, identity(8), prompts, 5)[0][0])
    assert greedy(params, config, identity(8), prompts, 5, eos_id=first)[0].shape == (0,)


def test_small_batches_keep_the_order_and_the_tokens(untied):
    _, params, config = untied
    prompts = random_prompts([30, 3, 14, 5, 9])
    whole = greedy(params, config, identity(8), prompts, 12)
    parts = greedy(params, config, identity(8), prompts, 12, batch_size=2)
    for a, b in zip(whole, parts):
        np.testing.assert_array_equal(a, b)


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


def test_nearby_lengths_and_other_scale_vectors_compile_once(untied):
    _, params, config = untied
    config = dataclasses.replace(config, context=255)  # not compiled by another test
    before = generate._decode._cache_size()
    for length, factor in [(17, 1.0), (25, 2.0), (32, 4.0)]:
        rope = ScaleVector.create(np.full(4, factor))
        greedy(params, config, rope, random_prompts([length]), 4)
    assert generate._decode._cache_size() == before + 1


def test_prefill_memory_does_not_grow_with_the_square_of_the_prompt(untied):
    config = dataclasses.replace(untied[2], vocab_size=4096)
    compiled = generate._decode.lower(
        jax.eval_shape(lambda: nn.unbox(init_params(config, jax.random.key(0)))),
        jax.eval_shape(lambda: identity(8)),
        jax.ShapeDtypeStruct((1, 2048), jnp.int32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        -1,
        config=config,
        max_new_tokens=8,
        batch_sharding=None,
    ).compile()
    logits = 2048 * 4096 * 4
    scores = 4 * 2048 * 2048 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < min(logits, scores) / 4


def test_rows_over_devices_give_the_same_tokens(untied):
    model, params, config = untied
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    spread = jax.device_put(params, NamedSharding(mesh, P()))
    prompts = random_prompts([4, 9, 20, 12, 33, 7])
    rows = NamedSharding(mesh, P(("data", "fsdp")))
    got = greedy(spread, config, identity(8), prompts, 10, batch_size=8, batch_sharding=rows)
    for row, expected in zip(got, continuations(model, prompts, 10)):
        np.testing.assert_array_equal(row, expected)


def test_bfloat16_decodes_with_a_bfloat16_cache(untied):
    _, params, config = untied
    config = dataclasses.replace(config, dtype="bfloat16")
    _, (keys, _) = Llama(config).apply(
        {"params": params}, jnp.zeros((1, 4), jnp.int32), identity(8), project=False, keep_keys=True
    )
    assert keys.dtype == jnp.bfloat16
    assert len(greedy(params, config, identity(8), random_prompts([9]), 8)[0]) == 8


@pytest.mark.parametrize("length", [1, 15, 16, 17, 100, 127, 128, 129, 4095, 4096, 4097, 30000])
def test_buckets_hold_the_prompt_with_an_eighth_to_spare_at_most(length):
    assert length <= bucket_length(length) <= max(16, length + max(16, length / 8))
    assert bucket_length(bucket_length(length)) == bucket_length(length)


def test_bad_requests_are_named(untied):
    config = untied[2]
    with pytest.raises(InputError, match="max_new_tokens"):
        greedy({}, config, identity(8), [np.array([1])], 0)
    with pytest.raises(InputError, match="batch_size"):
        greedy({}, config, identity(8), [np.array([1])], 1, batch_size=0)
    with pytest.raises(InputError, match="prompt 1 is empty"):
        greedy({}, config, identity(8), [np.array([1]), np.array([], np.int32)], 1)
    assert greedy({}, config, identity(8), [], 1) == []
