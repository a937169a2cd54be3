"""Chunked causal attention against dense attention in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rope_jax.model.attention import LayerCache, cached_attention, causal_attention
from rope_jax.model.flash import block_sizes


def dense(query, key, value, allowed):
    """Softmax attention by definition, float64: `[B, T, H, D]` from a mask `[B, T, S]`."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    group = query.shape[2] // key.shape[2]
    key, value = np.repeat(key, group, axis=2), np.repeat(value, group, axis=2)
    scores = np.einsum("bthd,bshd->bhts", query, key) / np.sqrt(query.shape[-1])
    scores = np.where(allowed[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), value)


def random_inputs(rows, length, heads, kv_heads, head_dim=8, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(rows, length, n, head_dim) for n in (heads, kv_heads, kv_heads)]
    return [2 * rng.normal(size=shape).astype(np.float32) for shape in shapes]


def random_segments(rows, length, seed=0):
    # Ids are not in order, so that equality is what counts; a zero among them is a document like any other.
    rng = np.random.default_rng(seed)
    cuts = rng.random((rows, length)) < 0.1
    return np.take(np.array([3, 0, 7, 1, 5] * 40), np.cumsum(cuts, axis=1)).astype(np.int32)


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(2, 1024))
def test_blocks_hold_every_token_and_stay_near_the_chunk(queries, keys, chunk):
    n, rows, m, columns = block_sizes(queries, keys, chunk)
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
    assert block_sizes(4096, keys, chunk)[2:] == blocks


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(
    ("length", "chunk"),
    # One chunk; no divisor; one query over; one query at a time; more chunks than groups, in uneven groups.
    [(37, 64), (37, 8), (33, 32), (5, 1), (83, 4)],
)
def test_equals_dense_attention(length, chunk, kv_heads):
    query, key, value = random_inputs(2, length, 4, kv_heads)
    segments = random_segments(2, length)
    causal = np.tril(np.ones((length, length), bool))
    allowed = causal[None] & (segments[:, :, None] == segments[:, None, :])
    # float32 sums over at most 83 terms of order 1 to 10.
    np.testing.assert_allclose(
        jax.jit(causal_attention, static_argnums=4)(query, key, value, segments, chunk),
        dense(query, key, value, allowed),
        atol=2e-6,
        rtol=2e-5,
    )


@pytest.mark.parametrize(("length", "chunk"), [(37, 64), (37, 8), (83, 4)])
@pytest.mark.parametrize("window", [1, 5, 30, 100])
def test_a_window_hides_what_is_further_back(length, chunk, window):
    query, key, value = random_inputs(2, length, 4, 2)
    segments = random_segments(2, length)
    back = np.arange(length)[:, None] - np.arange(length)[None, :]
    allowed = ((back >= 0) & (back < window))[None] & (segments[:, :, None] == segments[:, None, :])
    np.testing.assert_allclose(
        jax.jit(causal_attention, static_argnums=(4, 5))(query, key, value, segments, chunk, window),
        dense(query, key, value, allowed),
        atol=2e-6,
        rtol=2e-5,  # as without a window
    )


@pytest.mark.parametrize("window", [None, 6])
def test_gradients_do_not_depend_on_the_chunk(window):
    inputs = random_inputs(1, 19, 2, 1)
    segments = random_segments(1, 19)
    weights = np.random.default_rng(1).normal(size=inputs[0].shape).astype(np.float32)

    def gradients(chunk):
        return jax.jit(
            jax.grad(
                lambda query, key, value: (
                    causal_attention(query, key, value, segments, chunk, window) * weights
                ).sum(),
                argnums=(0, 1, 2),
            )
        )(*inputs)

    for chunked, whole in zip(gradients(4), gradients(32)):
        np.testing.assert_allclose(chunked, whole, atol=2e-5, rtol=2e-4)


def test_masked_keys_do_not_leak_through_large_values():
    query, key, value = random_inputs(1, 12, 1, 1)
    segments = np.repeat([[1, 2]], 6, axis=1)
    value = value.copy()
    before = causal_attention(query, key, value, segments, 5)
    value[:, :6] = 1e30
    key = key.copy()
    key[:, :6] = 1e4
    np.testing.assert_array_equal(causal_attention(query, key, value, segments, 5)[:, 6:], before[:, 6:])


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("chunk", [3, 4, 5, 32])
@pytest.mark.parametrize("count", [1, 7])
def test_cached_attention_reads_from_the_first_slot_to_the_query(window, chunk, count):
    query, key, value = random_inputs(2, 16, 4, 2)
    first, used = np.array([0, 6], np.int32), 13
    rows = used - count + np.arange(count)
    back = rows[:, None] - np.arange(16)[None, :]
    allowed = ((back >= 0) & (back < (window or 16)))[None] & (np.arange(16) >= first[:, None, None])
    for empty in ((0, slice(used, None)), (1, slice(used, None)), (1, slice(0, 6))):
        key[empty], value[empty] = 1e9, 1e30  # padding, and slots nobody has written
    cache = LayerCache(key.transpose(0, 2, 3, 1), value.swapaxes(1, 2), first, jnp.int32(used))
    got = jax.jit(cached_attention, static_argnums=(2, 3))(query[:, :count], cache, chunk, window)
    seen = allowed.any(-1)  # a padding query sees nothing, and what it gives is not read
    expected = dense(query[:, :count], key, value, allowed)
    np.testing.assert_allclose(np.asarray(got)[seen], expected[seen], atol=2e-6, rtol=2e-5)


def test_bfloat16_keeps_scores_in_float32():
    query, key, value = (jnp.asarray(x, jnp.bfloat16) for x in random_inputs(1, 40, 2, 2))
    ones = np.ones((1, 40), np.int32)
    out = causal_attention(query, key, value, ones, 16)
    assert out.dtype == jnp.bfloat16
    causal = np.tril(np.ones((1, 40, 40), bool))
    # Weights and outputs round to 8 bits, so 2^-8 of values of order 5; scores of order 30 in bfloat16 would be
    # off by 0.1, and the result by as much.
    np.testing.assert_allclose(np.asarray(out, np.float64), dense(query, key, value, causal), atol=0.04)
