"""Chunked causal attention against dense attention in float64 NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rope_jax.model.attention import cached_attention, causal_attention
from rope_jax.model.cache import LayerCache
from rope_jax.model.flash import block_sizes
from tests.model.references import allowed_keys, dense, random_segments


def random_inputs(rows, length, heads, kv_heads, head_dim=8, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(rows, length, n, head_dim) for n in (heads, kv_heads, kv_heads)]
    return [2 * rng.normal(size=shape).astype(np.float32) for shape in shapes]


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(2, 1024))
def test_blocks_hold_every_token_and_stay_near_the_chunk(queries, keys, chunk):
    (n, rows), (m, columns) = block_sizes(queries, keys, chunk)
    assert n * rows >= queries and m * columns >= keys
    assert rows <= 1.25 * chunk
    # As many scores at a time where queries are few.
    assert columns <= 1.25 * chunk * max(1, chunk // rows)


# Even where a size has a divisor near, in tiles of 64 where it has such a one.
@pytest.mark.parametrize(
    ("keys", "chunk", "blocks"),
    [(640, 256, (2, 320)), (2560, 256, (10, 256)), (300, 256, (2, 150)), (1024, 512, (2, 512))],
)
def test_blocks_of_keys_come_out_even(keys, chunk, blocks):
    assert block_sizes(4096, keys, chunk)[1] == blocks


@pytest.mark.parametrize(
    ("length", "chunk", "kv_heads"),
    # One chunk; no divisor; one query over; one query at a time; more chunks than groups, in uneven groups.
    [(37, 64, 4), (37, 8, 2), (33, 32, 1), (5, 1, 2), (83, 4, 1)],
)
def test_equals_dense_attention(length, chunk, kv_heads):
    inputs, segments = random_inputs(2, length, 4, kv_heads), random_segments(2, length)
    # float32 sums over at most 83 terms of order 1 to 10.
    np.testing.assert_allclose(
        jax.jit(partial(causal_attention, chunk=chunk))(*inputs, segments),
        dense(*inputs, allowed_keys(segments)),
        atol=2e-6,
        rtol=2e-5,
    )


@pytest.mark.parametrize(("window", "chunk"), [(1, 8), (5, 64), (5, 4), (30, 8), (100, 8)])
def test_a_window_hides_what_is_further_back(window, chunk):
    inputs, segments = random_inputs(2, 83, 4, 2), random_segments(2, 83)
    np.testing.assert_allclose(
        jax.jit(partial(causal_attention, chunk=chunk, window=window))(*inputs, segments),
        dense(*inputs, allowed_keys(segments, window)),
        atol=2e-6,
        rtol=2e-5,  # as without a window
    )


@pytest.mark.parametrize("tail", [1, 9])
def test_the_last_queries_alone_give_what_they_give_among_all(tail):
    (query, key, value), segments = random_inputs(2, 37, 4, 2), random_segments(2, 37)
    found = jax.jit(partial(causal_attention, chunk=8, window=20))(query[:, -tail:], key, value, segments)
    expected = dense(query, key, value, allowed_keys(segments, 20))[:, -tail:]
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("window", [None, 6])
def test_gradients_do_not_depend_on_the_chunk(window):
    inputs = random_inputs(1, 19, 2, 1)
    segments = jnp.asarray(random_segments(1, 19))
    weights = np.random.default_rng(1).normal(size=inputs[0].shape).astype(np.float32)

    def gradients(chunk):
        return jax.jit(
            jax.grad(
                lambda *x: (causal_attention(*x, segments, chunk=chunk, window=window) * weights).sum(),
                argnums=(0, 1, 2),
            )
        )(*inputs)

    for chunked, whole in zip(gradients(4), gradients(32)):
        np.testing.assert_allclose(chunked, whole, atol=2e-5, rtol=2e-4)


def test_masked_keys_do_not_leak_through_large_values():
    query, key, value = random_inputs(1, 12, 1, 1)
    segments = np.repeat([[1, 2]], 6, axis=1)
    value = value.copy()
    attention = jax.jit(partial(causal_attention, chunk=5))
    before = attention(query, key, value, segments)
    value[:, :6] = 1e30
    key = key.copy()
    key[:, :6] = 1e4
    np.testing.assert_array_equal(attention(query, key, value, segments)[:, 6:], before[:, 6:])


@pytest.mark.parametrize(
    ("window", "chunk", "count"),
    [(None, 3, 7), (4, 3, 7), (None, 4, 7), (4, 5, 7), (4, 32, 7), (None, 4, 1), (4, 4, 1)],
)
def test_cached_attention_reads_from_the_first_slot_to_the_query(window, chunk, count):
    query, key, value = random_inputs(2, 16, 4, 2)
    first, used = np.array([0, 6], np.int32), 13
    rows = used - count + np.arange(count)
    back = rows[:, None] - np.arange(16)[None, :]
    allowed = ((back >= 0) & (back < (window or 16)))[None] & (np.arange(16) >= first[:, None, None])
    for empty in ((0, slice(used, None)), (1, slice(used, None)), (1, slice(0, 6))):
        key[empty], value[empty] = 1e9, 1e30  # padding, and slots nobody has written
    cache = LayerCache(key.transpose(0, 2, 3, 1), value.swapaxes(1, 2), first, jnp.int32(used))
    got = jax.jit(partial(cached_attention, chunk=chunk, window=window))(query[:, :count], cache)
    seen = allowed.any(-1)  # a padding query sees nothing, and what it gives is not read
    expected = dense(query[:, :count], key, value, allowed)
    np.testing.assert_allclose(np.asarray(got)[seen], expected[seen], atol=2e-6, rtol=2e-5)


def test_bfloat16_keeps_scores_in_float32():
    query, key, value = (jnp.asarray(x, jnp.bfloat16) for x in random_inputs(1, 40, 2, 2))
    ones = np.ones((1, 40), np.int32)
    out = jax.jit(partial(causal_attention, chunk=16))(query, key, value, ones)
    assert out.dtype == jnp.bfloat16
    causal = np.tril(np.ones((1, 40, 40), bool))
    # Weights and outputs round to 8 bits, so 2^-8 of values of order 5; scores of order 30 in bfloat16 would be
    # off by 0.1, and the result by as much.
    np.testing.assert_allclose(np.asarray(out, np.float64), dense(query, key, value, causal), atol=0.04)
