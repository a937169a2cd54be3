"""The decoder's own promises: packing, caching, layers, recomputation and gradients of the scale vector."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_jax.errors import InputError
from rope_jax.model.attention import causal_attention
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import Inputs, Llama, block, forward, head_kernel, init_params, logits
from rope_jax.rope.embedding import ScaleVector

CONFIG = LlamaConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    initializer_range=0.2,  # ten times the usual, so that attention is far from uniform
    attention_chunk=16,
)
FACTORS = np.array([1.0, 1.7, 2.9, 4.0], np.float32)

# The same float32 products summed in another order; logits are of order 10.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}
# Angles at 40 positions differ by 4e-6 rad as well.
LOOSE = {"rtol": 1e-4, "atol": 1e-4}


B, T = 3, 40


@pytest.fixture(scope="module")
def params():
    return nn.unbox(init_params(CONFIG, jax.random.key(0)))


@pytest.fixture(scope="module")
def apply(params):
    """Logits of rows `[3, 40]`, compiled once."""
    compiled = jax.jit(Llama(CONFIG).apply)

    def call(tokens, rope, positions=None, segments=1):
        positions = np.arange(T) if positions is None else positions
        rows = (np.broadcast_to(x, (B, T)) for x in (positions, segments))
        return compiled({"params": params}, tokens, rope, *rows)

    return call


def random_tokens(rows, length, seed=0):
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (rows, length), np.int32)


def test_packed_documents_equal_separate_ones(apply):
    rope = ScaleVector.create(FACTORS, 1.1)
    lengths = (13, 1, 22)
    packed = random_tokens(1, T)[0]  # the last four are padding
    positions = np.concatenate([np.arange(n) for n in (*lengths, 4)])
    together = apply(np.stack([packed] * B), rope, positions, np.repeat([1, 2, 3, 0], [*lengths, 4]))
    ends = np.cumsum(lengths)
    alone = np.zeros((B, T), np.int32)
    for row, (length, end) in enumerate(zip(lengths, ends)):
        alone[row, :length] = packed[end - length : end]
    alone = apply(alone, rope)
    for row, (length, end) in enumerate(zip(lengths, ends)):
        np.testing.assert_allclose(together[0, end - length : end], alone[row, :length], **TOLERANCE)


def test_logits_depend_on_relative_positions_only(apply):
    rope, tokens = ScaleVector.create(FACTORS), random_tokens(B, T)
    # Angles reach 140 rad, where a float32 is 8e-6 apart and cos and sin are wrong by as much.
    np.testing.assert_allclose(
        apply(tokens, rope, np.arange(T) + 100), apply(tokens, rope, np.arange(T)), rtol=2e-4, atol=2e-4
    )


def test_positions_and_documents_have_defaults(params, apply):
    tokens, rope = random_tokens(B, T), ScaleVector.create(FACTORS)
    np.testing.assert_array_equal(jax.jit(Llama(CONFIG).apply)({"params": params}, tokens, rope), apply(tokens, rope))


def test_factors_per_layer(params, apply):
    tokens = random_tokens(B, T)
    rows = np.stack([FACTORS, np.ones(4, np.float32), FACTORS[::-1]])
    same = ScaleVector.create(np.stack([FACTORS] * 3))
    np.testing.assert_array_equal(apply(tokens, same), apply(tokens, ScaleVector.create(FACTORS)))

    @jax.jit
    def block_by_block(params):
        """Each with a vector of its own."""
        x = params["embedding"][tokens]
        for i, factors in enumerate(rows):
            angles = jnp.arange(T, dtype=jnp.float32)[None, :, None] * (1e4 ** (-jnp.arange(4) / 4) / factors)
            attend = partial(causal_attention, segment_ids=jnp.ones((B, T), int), chunk=64)
            weights = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
            angles = jnp.broadcast_to(angles, (B, T, 4))
            waves = jnp.cos(angles), jnp.sin(angles)
            x, _ = block(weights, CONFIG, x, waves, lambda *qkv, attend=attend: (attend(*qkv), None))
        x = x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + CONFIG.rms_norm_eps) * params["norm"]["weight"]
        return x @ params["head"]

    np.testing.assert_allclose(apply(tokens, ScaleVector.create(rows)), block_by_block(params), **LOOSE)


def test_a_tail_is_the_end_of_all_states(params):
    inputs = Inputs(random_tokens(B, T), np.broadcast_to(np.arange(T), (B, T)), np.ones((B, T), np.int32))
    attend = partial(causal_attention, chunk=16)

    @partial(jax.jit, static_argnames="tail")
    def states(params, tail):
        return forward(params, CONFIG, ScaleVector.create(FACTORS), inputs, attend=attend, tail=tail).states

    np.testing.assert_allclose(states(params, 7), states(params, 0)[:, -7:], **TOLERANCE)


def loss_and_gradients(config, params):
    """Of a loss on the logits, with respect to parameters and scale vector."""
    tokens = random_tokens(1, T)

    def loss(params, rope):
        return jnp.mean(Llama(config).apply({"params": params}, tokens, rope) ** 2)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, ScaleVector.create(FACTORS))


@pytest.fixture(scope="module")
def plain(params):
    return loss_and_gradients(CONFIG, params)


# What gradient checkpointing changes is in test_remat.py.
@pytest.mark.parametrize("changes", [{"scan_unroll": 2}, {"scan_unroll": 9, "remat": "full"}], ids=str)
def test_how_it_is_computed_changes_nothing(params, plain, changes):
    # Recomputed and reordered, but the same sums; the largest gradients are of order 10.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        loss_and_gradients(dataclasses.replace(CONFIG, **changes), params),
        plain,
    )


@pytest.mark.parametrize(
    ("shape", "rotary"), [("one vector", "float32"), ("per layer", "float32"), ("one vector", "exact")]
)
def test_gradient_of_the_scale_vector_is_the_finite_difference(params, shape, rotary):
    config = dataclasses.replace(CONFIG, rotary=rotary)
    tokens = random_tokens(2, 33)
    factors = FACTORS if shape == "one vector" else np.stack([FACTORS, FACTORS + 0.3, FACTORS + 0.7])
    rope = ScaleVector.create(factors, 1.1 if shape == "one vector" else (1.1, 1.0, 1.2))

    @jax.jit
    @jax.value_and_grad
    def loss(rope):
        log_probabilities = jax.nn.log_softmax(Llama(config).apply({"params": params}, tokens[:, :-1], rope))
        return -jnp.take_along_axis(log_probabilities, tokens[:, 1:, None], -1).sum()

    _, gradient = loss(rope)
    rng = np.random.default_rng(0)
    for _ in range(3):
        direction = ScaleVector.create(rng.normal(size=factors.shape), rng.normal(size=rope.attention_factor.shape))
        along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: float((g * d).sum()), gradient, direction)))

        def difference(step, direction=direction):
            ends = (jax.tree.map(lambda r, d, sign=sign: r + sign * step * d, rope, direction) for sign in (1, -1))
            after, before = (float(loss(end)[0]) for end in ends)
            return (after - before) / (2 * step)

        # Richardson: the error is then O(step^4). The loss is 300 in float32, so a difference over 2e-3 is
        # known to 3e-5 / 2e-3 = 2e-2 of gradients of order 10.
        estimate = (4 * difference(2e-3) - difference(4e-3)) / 3
        assert along == pytest.approx(estimate, rel=1e-2, abs=5e-2)


def test_exact_angles_are_the_same_model(params, apply):
    tokens, rope = random_tokens(B, T), ScaleVector.create(FACTORS, 1.1)
    exact = jax.jit(Llama(dataclasses.replace(CONFIG, rotary="exact")).apply)({"params": params}, tokens, rope)
    np.testing.assert_allclose(exact, apply(tokens, rope), **LOOSE)


def test_states_and_head_make_the_logits(params, apply):
    tokens, rope = random_tokens(B, T), ScaleVector.create(FACTORS)
    states = jax.jit(partial(Llama(CONFIG).apply, project=False))({"params": params}, tokens, rope)
    np.testing.assert_allclose(logits(states, head_kernel(params, CONFIG)), apply(tokens, rope), **TOLERANCE)

    tied = dataclasses.replace(CONFIG, tie_embeddings=True)
    without_head = {key: value for key, value in params.items() if key != "head"}
    np.testing.assert_allclose(
        jax.jit(Llama(tied).apply)({"params": without_head}, tokens, rope), states @ params["embedding"].T, **TOLERANCE
    )


def test_swapping_the_scale_vector_compiles_nothing(params):
    apply = jax.jit(Llama(CONFIG).apply)
    for factors in (FACTORS, FACTORS + 1, np.ones(4)):
        apply({"params": params}, random_tokens(1, 8), ScaleVector.create(factors))
    assert apply._cache_size() == 1


def test_scale_vectors_can_be_mapped_over(params, apply):
    tokens = random_tokens(B, T)
    several = ScaleVector.create(np.stack([FACTORS, np.ones(4)]), [1.0, 1.2])
    mapped = jax.jit(jax.vmap(lambda rope: Llama(CONFIG).apply({"params": params}, tokens, rope)))(several)
    for i in range(2):
        np.testing.assert_allclose(mapped[i], apply(tokens, jax.tree.map(lambda x, i=i: x[i], several)), **TOLERANCE)


def test_every_parameter_names_its_axes():
    boxed = jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0)))
    leaves = jax.tree.leaves(boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    assert all(len(leaf.names) == leaf.value.ndim and None not in leaf.names for leaf in leaves)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"architecture": "gemma"}, "architecture"),
        ({"architecture": "qwen2"}, "attention_bias"),
        ({"architecture": "mistral", "attention_bias": True}, "attention_bias"),
        ({"architecture": "mistral", "sliding_window": 0}, "sliding_window"),
        ({"sliding_window": 8}, "sliding_window"),
        ({"num_layers": 0}, "num_layers"),
        ({"scan_unroll": 0}, "scan_unroll"),
        ({"attention_chunk": 0}, "attention_chunk"),
        ({"num_kv_heads": 3}, "num_kv_heads"),
        ({"num_kv_heads": 0}, "num_kv_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"rotary": "float64"}, "rotary"),
        ({"attention": "flash"}, "attention"),
        ({"remat": "some"}, "remat"),
        ({"dtype": "float64"}, "dtype"),
        ({"param_dtype": "int8"}, "param_dtype"),
    ],
)
def test_bad_values_are_refused_by_name(changes, field):
    with pytest.raises(InputError, match=rf"^`{field}` is .*: ") as error:
        dataclasses.replace(CONFIG, **changes)
    assert error.value.field == field
