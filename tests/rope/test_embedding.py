"""Rotary embedding against transformers, float64 NumPy and its own defining properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from rope_jax.errors import InputError
from rope_jax.rope.embedding import ScaleVector, frequencies, identity, periods, phases, rotate
from rope_jax.rope.methods.by_parts import yarn
from rope_jax.rope.methods.interpolation import ntk, position_interpolation

HEAD_DIM = 16
THETA = frequencies(10000.0, HEAD_DIM)
PERIOD = periods(10000.0, HEAD_DIM)


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@jax.jit
def turn(x, positions, factors, attention_factor=1.0):
    angles = phases(jnp.asarray(positions), PERIOD, jnp.asarray(factors, jnp.float32))
    return rotate(x, attention_factor * jnp.cos(angles), attention_factor * jnp.sin(angles))


def float64_turn(x, positions, factors):
    """The rotation as 2 x 2 matrices, in float64."""
    angles = np.asarray(positions, np.float64)[..., None] * (np.float64(THETA) / np.asarray(factors, np.float64))
    turned = np.empty(x.shape, np.float64)
    half = x.shape[-1] // 2
    for pair in range(half):
        cos, sin = np.cos(angles[..., None, pair]), np.sin(angles[..., None, pair])
        turned[..., pair] = cos * x[..., pair] - sin * x[..., pair + half]
        turned[..., pair + half] = sin * x[..., pair] + cos * x[..., pair + half]
    return turned


@pytest.mark.parametrize(("base", "head_dim"), [(10000.0, 128), (500000.0, 64), (1e6, 80), (10000.0, 2)])
def test_frequencies(base, head_dim):
    exact = base ** (-np.arange(0, head_dim, 2) / head_dim)
    theta = frequencies(base, head_dim)
    np.testing.assert_allclose(theta, exact, rtol=1e-6)
    assert theta.dtype == np.float32 and theta[0] == 1


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 100_000), st.floats(1, 8, width=32), st.integers(0, 2**31))
def test_keeps_norms(start, factor, seed):
    x = random(seed, 1, 4, 2, HEAD_DIM)
    turned = turn(x, start + np.arange(4)[None], np.full(HEAD_DIM // 2, factor))
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500), st.integers(0, 2**31))
def test_scores_depend_on_distance_alone(m, n, shift, seed):
    query, key = random(seed, 1, 1, 1, HEAD_DIM), random(seed + 1, 1, 1, 1, HEAD_DIM)
    factors = ntk(HEAD_DIM, 2.0).factors

    def score(query_position, key_position):
        return float(jnp.vdot(turn(query, [[query_position]], factors), turn(key, [[key_position]], factors)))

    # Positions up to 1000 in float32 are off by up to 6e-5 rad each.
    assert score(m, n) == pytest.approx(score(m + shift, n + shift), abs=3e-4 * HEAD_DIM)


@pytest.mark.parametrize(
    ("rope", "vector"),
    [
        ({"rope_type": "default"}, identity(HEAD_DIM)),
        ({"rope_type": "linear", "factor": 4.0}, position_interpolation(HEAD_DIM, 4.0)),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
            yarn(10000.0, HEAD_DIM, 4.0, 128),
        ),
    ],
    ids=["default", "linear", "yarn"],
)
def test_equals_transformers(rope, vector):
    config = LlamaConfig(
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        max_position_embeddings=512,
        rope_parameters={"rope_theta": 10000.0, **rope},
    )
    query, key = random(0, 2, 512, 4, HEAD_DIM), random(1, 2, 512, 2, HEAD_DIM)
    positions = np.stack([np.arange(512), np.arange(512)[::-1]])
    rotary = LlamaRotaryEmbedding(config)
    cos, sin = rotary(torch.from_numpy(query), torch.from_numpy(positions.copy()))
    expected = apply_rotary_pos_emb(
        torch.from_numpy(query).transpose(1, 2), torch.from_numpy(key).transpose(1, 2), cos, sin
    )
    for x, reference in zip((query, key), expected):
        turned = turn(x, positions, vector.factors, vector.attention_factor)
        np.testing.assert_allclose(turned, reference.transpose(1, 2).numpy(), atol=3e-4)


@pytest.mark.parametrize("jit", [False, True])
def test_phases_are_those_of_transformers_longrope(jit):
    """What an export turns by in transformers, at 16k: the same float32 angles but for torch's own rounding of pow."""
    factors = np.random.default_rng(0).uniform(1, 4, 64).astype(np.float32).tolist()
    block = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "attention_factor": 1.0}
    block |= {"factor": 1.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16384}
    config = LlamaConfig(head_dim=128, max_position_embeddings=16384, rope_parameters=block)
    expected = LlamaRotaryEmbedding(config).inv_freq.numpy()[None] * np.float32(16383)
    angles = (jax.jit(phases) if jit else phases)(jnp.array([16383]), periods(10000.0, 128), jnp.asarray(factors))
    # torch's pow is off by one unit in the last place for a few pairs; nearly all angles agree to the last bit.
    np.testing.assert_allclose(angles, expected, rtol=1.2e-7)
    assert np.mean(np.asarray(angles) == expected) > 0.9


def test_equals_float64():
    x = random(2, 1, 64, 2, HEAD_DIM)
    factors = ntk(HEAD_DIM, 2.0).factors
    positions = np.arange(64)[None]
    np.testing.assert_allclose(turn(x, positions, factors), float64_turn(x, positions, factors), atol=2e-5)


def test_gradient_in_the_factors():
    x, weights = random(3, 1, 32, 2, HEAD_DIM), random(4, 1, 32, 2, HEAD_DIM)
    positions = np.arange(32)[None]
    factors = np.linspace(1, 2, HEAD_DIM // 2)

    gradient = jax.grad(lambda factors: jnp.sum(weights * turn(x, positions, factors)))(
        jnp.asarray(factors, jnp.float32)
    )

    def loss(factors):
        return float(np.sum(weights * float64_turn(x, positions, factors)))

    step = 1e-6 * np.eye(HEAD_DIM // 2)
    expected = [(loss(factors + row) - loss(factors - row)) / 2e-6 for row in step]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


def test_attention_factor_scales():
    x = random(5, 1, 8, 1, HEAD_DIM)
    positions = np.arange(8)[None]
    np.testing.assert_allclose(turn(x, positions, np.ones(8), 1.5), 1.5 * turn(x, positions, np.ones(8)), rtol=1e-6)


def test_keeps_the_dtype():
    x = jnp.asarray(random(6, 1, 8, 1, HEAD_DIM), jnp.bfloat16)
    assert turn(x, np.arange(8)[None], np.ones(8)).dtype == jnp.bfloat16


def test_scale_vectors_map():
    vectors = [ScaleVector.create(np.full(HEAD_DIM // 2, s)) for s in (1.0, 2.0)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *vectors)
    assert isinstance(stacked, ScaleVector)
    x, positions = random(7, 1, 8, 1, HEAD_DIM), np.arange(8)[None]
    together = jax.vmap(lambda vector: turn(x, positions, vector.factors, vector.attention_factor))(stacked)
    for turned, vector in zip(together, vectors):
        np.testing.assert_allclose(turned, turn(x, positions, vector.factors), atol=1e-6)


@pytest.mark.parametrize(
    ("base", "head_dim", "field"),
    [(10000.0, 7, "head_dim"), (10000.0, 0, "head_dim"), (1.0, 8, "base")],
)
def test_frequencies_reject(base, head_dim, field):
    with pytest.raises(InputError) as error:
        frequencies(base, head_dim)
    assert error.value.field == field
