"""The chunked cross entropy against torch, its memory, its cost and its shardings."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from rope_jax.plan.collectives import collectives
from rope_jax.sharding import make_mesh, spec
from rope_jax.training.loss import COLUMNS, cross_entropy, next_token_targets, token_nll


def inputs(b=4, t=22, e=16, v=48, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(b, t, e)).astype(np.float32),
        rng.normal(size=(e, v)).astype(np.float32),
        rng.integers(0, v, (b, t)).astype(np.int32),
        (rng.uniform(size=(b, t)) * (rng.uniform(size=(b, t)) < 0.7)).astype(np.float32),
    )


def reference(hidden, head, targets, weights):
    """Sum, gradients of the mean and per-token NLL, in float64 by torch."""
    h = torch.tensor(hidden, dtype=torch.float64, requires_grad=True)
    k = torch.tensor(head, dtype=torch.float64, requires_grad=True)
    w = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
    logits = (h @ k).flatten(0, 1)
    labels = torch.tensor(targets, dtype=torch.long).flatten()
    nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none").reshape(weights.shape)
    total = (nll * w).sum()
    (total / w.sum()).backward()
    return float(total.detach()), [x.grad.numpy() for x in (h, k, w)], nll.detach().numpy()


def mean_loss(hidden, head, weights, targets, chunk, mesh=None):
    total, count = cross_entropy(hidden, head, targets, weights, chunk, mesh=mesh)
    return total / count


@pytest.mark.parametrize(("chunk", "v"), [(1, 48), (5, 48), (22, 48), (64, 48), (7, 2 * COLUMNS), (7, COLUMNS + 3)])
def test_loss_and_gradients_match_torch(chunk, v):
    hidden, head, targets, weights = inputs(v=v)
    want, want_grads, want_nll = reference(hidden, head, targets, weights)
    total, count = jax.jit(cross_entropy, static_argnums=4)(hidden, head, targets, weights, chunk)
    np.testing.assert_allclose(total, want, rtol=2e-6)
    np.testing.assert_allclose(count, weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(token_nll(hidden, head, targets, chunk), want_nll, rtol=1e-5, atol=1e-5)

    grads = jax.jit(jax.grad(mean_loss, (0, 1, 2)), static_argnums=4)(hidden, head, weights, targets, chunk)
    for got, expected in zip(grads, want_grads):
        assert got.dtype == jnp.float32
        # Sums of up to V terms, half a unit in the last place (6e-8 of the largest) apart each, mostly to both sides.
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-6 * np.abs(expected).max())


def test_bfloat16_is_within_its_rounding_and_gradients_keep_their_dtypes():
    hidden, head, targets, weights = inputs(t=64)
    hidden = np.array(jnp.asarray(hidden, jnp.bfloat16), np.float32)
    rounded = np.array(jnp.asarray(head, jnp.bfloat16), np.float32)
    want, want_grads, _ = reference(hidden, rounded, targets, weights)
    # The head is kept in float32, as master weights are, and rounded for the products only.
    total, _ = cross_entropy(jnp.asarray(hidden, jnp.bfloat16), head, targets, weights, 16)
    np.testing.assert_allclose(total, want, rtol=1e-5)
    d_hidden, d_head = jax.grad(mean_loss, (0, 1))(jnp.asarray(hidden, jnp.bfloat16), head, weights, targets, 16)
    assert (d_hidden.dtype, d_head.dtype) == (jnp.bfloat16, jnp.float32)
    # Eight bits of mantissa, rounded at d_logits and at d_hidden: 2^-8 each, relative to the largest entry.
    for got, expected in zip((d_hidden, d_head), want_grads):
        np.testing.assert_allclose(np.float32(got), expected, atol=2 * 2**-8 * np.abs(expected).max())


def test_logits_are_computed_once_and_only_one_product_without_gradient():
    hidden, head, targets, weights = inputs()

    def products(function):
        return str(jax.make_jaxpr(function)(hidden, head)).count("dot_general[")

    assert products(lambda h, k: cross_entropy(h, k, targets, weights, 8)[0]) == 1
    assert products(jax.grad(lambda h, k: cross_entropy(h, k, targets, weights, 8)[0], (0, 1))) == 3


def test_memory_is_far_below_that_of_the_logits():
    b, t, e, v, chunk = 2, 1024, 32, 8192, 64
    shapes = (
        jax.ShapeDtypeStruct((b, t, e), jnp.float32),
        jax.ShapeDtypeStruct((e, v), jnp.float32),
        jax.ShapeDtypeStruct((b, t), jnp.float32),
        jax.ShapeDtypeStruct((b, t), jnp.int32),
    )
    all_logits = b * t * v * 4
    for function in (mean_loss, jax.value_and_grad(mean_loss, (0, 1))):
        memory = jax.jit(function, static_argnums=4).lower(*shapes, chunk).compile().memory_analysis()
        # Two or three arrays of a chunk's logits, and the accumulated gradient of the head.
        assert memory.temp_size_in_bytes < 4 * b * chunk * v * 4 + 2 * e * v * 4
        assert memory.temp_size_in_bytes < all_logits / 3


def test_zero_weights_give_zero_loss_and_zero_gradients():
    hidden, head, targets, _ = inputs()
    zero = np.zeros(targets.shape, np.float32)
    (total, count), pull = jax.vjp(lambda h, k: cross_entropy(h, k, targets, zero, 8), hidden, head)
    assert total == 0 and count == 0
    for gradient in pull((jnp.float32(1), jnp.float32(0))):
        assert not np.any(gradient)


@pytest.mark.parametrize("scale", [1e4, 1e15])
def test_extreme_logits_stay_finite(scale):
    hidden, head, targets, weights = inputs()
    (total, _), pull = jax.vjp(lambda h, k: cross_entropy(h, k, targets, weights, 8), hidden * scale, head)
    want, _, _ = reference(hidden * scale, head, targets, weights)
    np.testing.assert_allclose(total, want, rtol=1e-5)
    for gradient in pull((jnp.float32(1), jnp.float32(0))):
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("sizes", [(4, 1, 1, 1), (1, 4, 1, 1), (1, 1, 4, 1), (1, 1, 1, 4), (1, 2, 2, 2), (2, 2, 2, 1)])
@pytest.mark.parametrize("differentiated", [True, False], ids=["gradient", "loss"])
def test_devices_take_their_parts_and_give_the_same(sizes, differentiated):
    hidden, head, targets, weights = inputs(b=4, t=24, v=48)
    mesh = make_mesh(*sizes[:3], jax.devices()[: np.prod(sizes)], context=sizes[3])
    tokens, kernel = spec("batch", "length"), spec("embed", "vocab")

    def place(x, axes):
        return jax.device_put(x, NamedSharding(mesh, axes))

    function = jax.value_and_grad(mean_loss, (0, 1)) if differentiated else mean_loss
    want = function(hidden, head, weights, targets, 4)
    step = jax.jit(function, static_argnums=(4, 5))
    placed = place(hidden, tokens), place(head, kernel), place(weights, tokens), place(targets, tokens)
    got = step(*placed, 4, mesh)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, want)
    if differentiated:
        d_hidden, d_head = got[1]
        assert d_hidden.sharding.is_equivalent_to(NamedSharding(mesh, tokens), 3)
        assert d_head.sharding.is_equivalent_to(NamedSharding(mesh, kernel), 2)


def test_what_devices_send_does_not_depend_on_the_chunk():
    """The head is gathered, and its gradient summed, once and not for each chunk."""
    hidden, head, targets, weights = inputs()
    step = jax.jit(jax.grad(mean_loss, (0, 1)), static_argnums=(4, 5))

    def sent(chunk):
        compiled = step.lower(hidden, head, weights, targets, chunk, make_mesh(2, 2, 2)).compile()
        return {c.kind: c.bytes for c in collectives(compiled.as_text())}

    assert sent(2) == sent(22)
    assert sent(2)["reduce-scatter"] == head.size * 4 / 2 * (2 - 1) / 2  # half of the vocabulary, over two devices


def test_unwanted_tokens_get_zero_and_the_others_are_unchanged():
    hidden, head, targets, weights = inputs()
    wanted = weights > 0
    wanted[:, 5:10] = False
    every = np.asarray(token_nll(hidden, head, targets, 5))
    np.testing.assert_array_equal(jax.jit(token_nll, static_argnums=3)(hidden, head, targets, 5, wanted) != 0, wanted)
    np.testing.assert_allclose(token_nll(hidden, head, targets, 5, wanted), np.where(wanted, every, 0), rtol=1e-6)


def test_targets_stop_at_documents_and_padding():
    tokens = np.array([[5, 6, 7, 8, 9, 0, 0]], np.int32)
    targets, weights = next_token_targets(tokens, np.array([[1, 1, 1, 2, 2, 0, 0]], np.int32))
    np.testing.assert_array_equal(targets, [[6, 7, 8, 9, 0, 0, 0]])
    np.testing.assert_array_equal(weights, [[1, 1, 0, 1, 0, 0, 0]])
    assert targets.dtype == jnp.int32 and weights.dtype == jnp.float32


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_weights_agree_with_a_loop(ids):
    segments = np.array([ids], np.int32)
    _, weights = next_token_targets(np.zeros_like(segments), segments)
    want = [float(a == b != 0) for a, b in itertools.pairwise(ids)] + [0.0]
    np.testing.assert_array_equal(weights, [want])
