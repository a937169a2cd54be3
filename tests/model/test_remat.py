"""What a block keeps never changes what it computes, and is what its policy says."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_jax.model.llama import init_params
from rope_jax.model.remat import POLICIES
from rope_jax.rope.embedding import ScaleVector
from rope_jax.training.state import Variables
from rope_jax.training.step import summed_loss
from tests.training.helpers import CONFIG, Batches

ROPE = ScaleVector.create(np.linspace(1.0, 2.0, 4))
ROWS = next(Batches())


def loss(params, policy):
    return summed_loss(Variables(params, ROPE), ROWS, dataclasses.replace(CONFIG, remat=policy), 10)[0]


@pytest.fixture(scope="module")
def params():
    return nn.unbox(init_params(CONFIG, jax.random.key(0)))


@pytest.fixture(scope="module")
def expected(params):
    return jax.jit(jax.grad(lambda p: loss(p, "none")))(params)


@pytest.mark.parametrize("policy", list(POLICIES)[1:])
def test_gradients_are_those_of_no_policy(params, expected, policy):
    gradients = jax.jit(jax.grad(lambda p: loss(p, policy)))(params)
    # The same float32 products, which a compiler may fuse in another way; gradients are of order 1.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), expected, gradients)


def kept(params, policy):
    """What a backward pass keeps, but for the parameters: shapes of float arrays stacked over layers."""

    def residuals(params):
        given = {id(leaf) for leaf in jax.tree.leaves(params)}
        pullback = jax.vjp(lambda p: loss(p, policy), params)[1]
        return [leaf for leaf in jax.tree.leaves(pullback) if id(leaf) not in given]

    leaves = jax.eval_shape(residuals, params)
    return sorted(
        leaf.shape[1:]
        for leaf in leaves
        if leaf.ndim > 2 and leaf.shape[0] == CONFIG.num_layers and jnp.issubdtype(leaf.dtype, jnp.floating)
    )


def test_what_is_kept(params):
    b, t = ROWS["tokens"].shape
    c = CONFIG
    entering = (b, t, c.hidden_size)
    heads = (c.num_kv_heads, c.num_heads // c.num_kv_heads)
    attended, sums = (b, *heads, t, c.head_dim), (b, *heads, t)
    asked = (b, t, c.num_heads, c.head_dim)
    keys = (b, t, c.num_kv_heads, c.head_dim)
    wide = (b, t, c.intermediate_size)
    assert kept(params, "full") == [entering]
    assert kept(params, "attention") == sorted([entering, attended, sums])
    # The block's input, what `o` gave, q, k, v, attention's output with the logs of its sums, and the two inputs of the
    # SwiGLU.
    assert kept(params, "dots") == sorted([entering, entering, asked, attended, sums, keys, keys, wide, wide])
    size = {policy: sum(map(math.prod, kept(params, policy))) for policy in list(POLICIES)[:4]}
    assert size["none"] > size["dots"] > size["attention"] > size["full"]


def test_offload_keeps_it_in_the_hosts_memory(params):
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda p: loss(p, "offload")))(params))
    b, t = ROWS["tokens"].shape
    assert f"<host>[{CONFIG.num_layers},{b},{t},{CONFIG.hidden_size}]" in jaxpr
