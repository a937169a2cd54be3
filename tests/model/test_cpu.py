"""What only CPUs need computes what the plain formula does, compiled as users compile it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_jax.model import cpu

pytestmark = pytest.mark.usefixtures("optimised")


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# The input is narrower than the output, and wider; one contracted axis, and two.
@pytest.mark.parametrize(
    ("x", "kernel", "axes"), [((2, 5, 3), (3, 4, 2), 1), ((2, 5, 8), (8, 3), 1), ((2, 5, 4, 2), (4, 2, 3), 2)]
)
def test_product_and_its_gradient(x, kernel, axes):
    x, kernel = random(*x), random(*kernel, seed=1)

    def both(product):
        out, pull = jax.vjp(partial(product, axes=axes), x, kernel)
        return out, *pull(jnp.cos(out))

    plain = jax.jit(lambda: both(jnp.tensordot))()
    for ours, theirs in zip(jax.jit(lambda: both(lambda x, k, axes: cpu.product(x, k, axes)))(), plain):
        # The same float32 sums of at most ten terms.
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_cos_and_sin_and_their_gradient():
    angles = 100 * random(2, 3, 4)
    ours = jax.jit(lambda a: (*cpu.cos_and_sin(a), jax.grad(lambda a: sum(jnp.sum(w) for w in cpu.cos_and_sin(a)))(a)))
    cos, sin = np.cos(np.float64(angles)), np.sin(np.float64(angles))
    for found, expected in zip(ours(angles), (cos, sin, cos - sin)):
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vector_products(group, dtype):
    vectors, matrices = random(2, 3, group, 5).astype(dtype), random(2, 3, 5, 7, seed=1).astype(dtype)
    found = jax.jit(cpu.vector_products)(vectors, matrices)
    assert found.dtype == jnp.float32
    expected = np.einsum("bkgm,bkmn->bkgn", *(np.float64(np.float32(x)) for x in (vectors, matrices)))
    np.testing.assert_allclose(found, expected, atol=1e-5)  # sums of five terms of order 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 2, 32, 33])
def test_projection(rows, dtype):
    states, head = random(rows, 16).astype(dtype), random(40, 16, seed=1).astype(dtype)
    found = jax.jit(cpu.projection)(states, head)
    assert found.dtype == jnp.float32
    expected = np.float64(np.float32(states)) @ np.float64(np.float32(head)).T
    np.testing.assert_allclose(found, expected, atol=1e-5)  # sums of sixteen terms of order 1


def test_most_likely_is_the_first_of_the_largest_that_are_not_banned():
    logits = jnp.asarray([[0.0, 3.0, 3.0, 1.0], [5.0, 2.0, 1.0, 2.0], [-1.0, -2.0, -3.0, -1.0]])
    found = jax.jit(cpu.most_likely)
    assert found(logits, jnp.zeros(4, bool)).tolist() == [1, 0, 0]
    assert found(logits, jnp.asarray([True, True, False, False])).tolist() == [2, 3, 3]
