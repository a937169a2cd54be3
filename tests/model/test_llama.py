"""The decoder's own promises: packing, caching, layers, recomputation and gradients of the scale vector."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_jax.errors import InputError
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import Block, Llama, head_kernel, init_params
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


@pytest.fixture(scope="module")
def params():
    return nn.unbox(jax.jit(lambda key: init_params(CONFIG, key))(jax.random.key(0)))


@pytest.fixture(scope="module")
def logits(params):
    apply = jax.jit(Llama(CONFIG).apply)
    return lambda tokens, rope, *args: apply({"params": params}, tokens, rope, *args)


def random_tokens(rows, length, seed=0):
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (rows, length), np.int32)


def test_packed_documents_equal_separate_ones(logits):
    rope = ScaleVector.create(FACTORS, 1.1)
    lengths = (13, 1, 27)
    packed = random_tokens(1, sum(lengths) + 4)  # the last four are padding
    positions = np.concatenate([np.arange(n) for n in (*lengths, 4)])[None]
    segments = np.repeat([1, 2, 3, 0], [*lengths, 4])[None]
    together = logits(packed, rope, positions, segments)
    start = 0
    for length in lengths:
        alone = logits(packed[:, start : start + length], rope)
        np.testing.assert_allclose(together[:, start : start + length], alone, **TOLERANCE)
        start += length


def test_logits_depend_on_relative_positions_only(logits):
    rope = ScaleVector.create(FACTORS)
    tokens = random_tokens(1, 20)
    positions = np.arange(20)[None]
    # Angles reach 120 rad, where a float32 is 4e-6 apart and cos and sin are wrong by as much.
    np.testing.assert_allclose(
        logits(tokens, rope, positions + 100, np.ones_like(tokens)), logits(tokens, rope), rtol=2e-4, atol=2e-4
    )


def test_factors_per_layer(params, logits):
    tokens = random_tokens(1, 40)
    rows = np.stack([FACTORS, np.ones(4, np.float32), FACTORS[::-1]])
    same = ScaleVector.create(np.stack([FACTORS] * 3))
    np.testing.assert_array_equal(logits(tokens, same), logits(tokens, ScaleVector.create(FACTORS)))

    # Block by block, each with a vector of its own.
    x = params["embedding"][tokens]
    ones = np.ones_like(tokens)
    for i in range(3):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        x, _ = Block(CONFIG).apply({"params": layer}, x, rows[i], None, 1.0, np.arange(40)[None], ones)
    x = x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + CONFIG.rms_norm_eps) * params["norm"]["weight"]
    np.testing.assert_allclose(logits(tokens, ScaleVector.create(rows)), x @ params["head"], **TOLERANCE)


def loss_and_gradients(config, params):
    """Of a loss on the logits, with respect to parameters and scale vector."""
    tokens = random_tokens(1, 40)

    def loss(params, rope):
        return jnp.mean(Llama(config).apply({"params": params}, tokens, rope) ** 2)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, ScaleVector.create(FACTORS))


@pytest.fixture(scope="module")
def plain(params):
    return loss_and_gradients(CONFIG, params)


@pytest.mark.parametrize(
    "changes", [{"remat": "full"}, {"scan_unroll": 2}, {"scan_unroll": 9, "remat": "full"}], ids=str
)
def test_how_it_is_computed_changes_nothing(params, plain, changes):
    # Recomputed and reordered, but the same sums; the largest gradients are of order 10.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        loss_and_gradients(dataclasses.replace(CONFIG, **changes), params),
        plain,
    )


@pytest.mark.parametrize("rotary", ["float32", "exact"])
@pytest.mark.parametrize("shape", ["one vector", "per layer"])
def test_gradient_of_the_scale_vector_is_the_finite_difference(params, shape, rotary):
    config = dataclasses.replace(CONFIG, rotary=rotary)
    tokens = random_tokens(2, 33)
    factors = FACTORS if shape == "one vector" else np.stack([FACTORS, FACTORS + 0.3, FACTORS + 0.7])
    rope = ScaleVector.create(factors, 1.1)

    @jax.jit
    def loss(rope):
        log_probabilities = jax.nn.log_softmax(Llama(config).apply({"params": params}, tokens[:, :-1], rope))
        return -jnp.take_along_axis(log_probabilities, tokens[:, 1:, None], -1).sum()

    gradient = jax.jit(jax.grad(loss))(rope)
    rng = np.random.default_rng(0)
    for _ in range(3):
        direction = ScaleVector.create(rng.normal(size=factors.shape), rng.normal())
        along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: float((g * d).sum()), gradient, direction)))

        def difference(step, direction=direction):
            ahead, behind = (
                jax.tree.map(lambda r, d, sign=sign: r + sign * step * d, rope, direction) for sign in (1, -1)
            )
            return (float(loss(ahead)) - float(loss(behind))) / (2 * step)

        # Richardson: the error is then O(step^4). The loss is 300 in float32, so a difference over 4e-3 is
        # known to 3e-5 / 4e-3 = 1e-2 of gradients of order 10.
        estimate = (4 * difference(4e-3) - difference(8e-3)) / 3
        assert along == pytest.approx(estimate, rel=1e-2, abs=5e-2)


def test_exact_angles_are_the_same_model(params, logits):
    tokens, rope = random_tokens(2, 33), ScaleVector.create(FACTORS, 1.1)
    exact = Llama(dataclasses.replace(CONFIG, rotary="exact")).apply({"params": params}, tokens, rope)
    # Float32 angles at 33 positions are off by 2e-6 rad.
    np.testing.assert_allclose(exact, logits(tokens, rope), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match=r"^model\.rotary is 'float64'"):
        dataclasses.replace(CONFIG, rotary="float64")


def test_states_and_head_make_the_logits(params, logits):
    rope = ScaleVector.create(FACTORS)
    tokens = random_tokens(1, 9)
    states = Llama(CONFIG).apply({"params": params}, tokens, rope, project=False)
    np.testing.assert_allclose(states @ head_kernel(params, CONFIG), logits(tokens, rope), **TOLERANCE)

    tied = dataclasses.replace(CONFIG, tie_embeddings=True)
    without_head = {key: value for key, value in params.items() if key != "head"}
    np.testing.assert_allclose(
        Llama(tied).apply({"params": without_head}, tokens, rope), states @ params["embedding"].T, **TOLERANCE
    )


def test_swapping_the_scale_vector_compiles_nothing(params):
    apply = jax.jit(Llama(CONFIG).apply)
    for factors in (FACTORS, FACTORS + 1, np.ones(4)):
        apply({"params": params}, random_tokens(1, 8), ScaleVector.create(factors))
    assert apply._cache_size() == 1


def test_scale_vectors_can_be_mapped_over(params, logits):
    tokens = random_tokens(1, 20)
    several = ScaleVector.create(np.stack([FACTORS, np.ones(4)]), [1.0, 1.2])
    mapped = jax.vmap(lambda rope: Llama(CONFIG).apply({"params": params}, tokens, rope))(several)
    for i in range(2):
        rope = jax.tree.map(lambda x, i=i: x[i], several)
        np.testing.assert_allclose(mapped[i], logits(tokens, rope), **TOLERANCE)


def test_every_parameter_names_its_axes():
    boxed = jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0)))
    leaves = jax.tree.leaves(boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    assert all(len(leaf.names) == leaf.value.ndim and None not in leaf.names for leaf in leaves)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gemma"}, "model.architecture is 'gemma': use one of llama, mistral, qwen2, qwen3"),
        ({"architecture": "qwen2"}, "model.attention_bias is False: 'qwen2' asks for True"),
        ({"architecture": "mistral", "attention_bias": True}, "model.attention_bias is True: 'mistral' asks for False"),
        ({"architecture": "mistral", "sliding_window": 0}, "model.sliding_window is 0"),
        ({"sliding_window": 8}, "model.sliding_window is 8: it is a number of tokens for 'mistral'"),
        ({"num_layers": 0}, "model.num_layers is 0"),
        ({"scan_unroll": 0}, "model.scan_unroll is 0: it must be at least 1"),
        ({"attention_chunk": 0}, "model.attention_chunk is 0: it must be at least 1"),
        ({"num_kv_heads": 3}, "model.num_heads is 4 and model.num_kv_heads 3"),
        ({"num_kv_heads": 0}, "model.num_kv_heads 0"),
        ({"head_dim": 7}, "model.head_dim is 7.*even"),
        ({"dtype": "float64"}, "model.dtype is 'float64'"),
        ({"param_dtype": "int8"}, "model.param_dtype is 'int8'"),
    ],
)
def test_bad_sizes(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **changes)
