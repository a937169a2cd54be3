"""What is not finite is named: weights, states and gradients, by layer; and looking costs nothing when it is off."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_jax.model.lora import LoraConfig
from rope_jax.training.config import OptimizerConfig, make_optimizer
from rope_jax.training.finite import explain, finite
from rope_jax.training.loop import NonFiniteLoss
from rope_jax.training.state import Variables, create_state
from rope_jax.training.step import train_step
from tests.training.helpers import CONFIG, ONE, ROPE, RUN, Batches, fit, initial, loss_of, mesh_of

ROWS = {name: value[None] for name, value in next(Batches()).items()}


@pytest.fixture(scope="module")
def params():
    # On no device in particular, so that they fit any mesh.
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), initial())


def scaled(params, factor, *path, layer=None):
    """Parameters with one of them, in one layer if asked, multiplied."""
    copy = jax.tree.map(lambda leaf: leaf, params)
    place = copy
    for key in path[:-1]:
        place = place[key]
    leaf = place[path[-1]]
    place[path[-1]] = leaf * factor if layer is None else leaf.at[layer].multiply(factor)
    return copy


def said(params, flags=None, mesh=None):
    flags = jax.tree.map(lambda leaf: jnp.ones(leaf.shape[:1], bool), params) if flags is None else flags
    return explain(flags, Variables(params, ROPE), ROWS, CONFIG, mesh)


def test_names_the_first_part(params):
    up = ("layers", "feed_forward", "up", "kernel")
    assert said(scaled(params, jnp.nan, *up, layer=1)) == "the weight layers.feed_forward.up.kernel of layer 1 " + (
        "(counted from 0)"
    )
    assert said(scaled(params, jnp.inf, "head")) == "the weight head"
    # Finite weights whose product is not: 1e25^2 in the first layer's SwiGLU, through `gate` and `up`.
    large = scaled(scaled(params, 1e25, *up, layer=1), 1e25, "layers", "feed_forward", "gate", "kernel", layer=1)
    assert said(large) == "the output of layer 1 (counted from 0) in the forward pass"
    assert said(large, mesh=mesh_of(2, 2, 2)) == said(large)
    flags = finite(scaled(params, jnp.nan, "layers", "attention", "q", "kernel", layer=0))
    assert said(params, flags) == "the gradient of layers.attention.q.kernel of layer 0 (counted from 0)"
    assert said(params, finite(scaled(params, jnp.nan, "embedding"))) == "the gradient of embedding"


LORA = LoraConfig(2, 4.0, ("q", "embedding", "norm"))


@pytest.mark.parametrize(
    ("mesh", "lora"),
    [
        pytest.param(ONE, None, id="one"),
        pytest.param(mesh_of(2, 2, 2), LORA, id="eight with LoRA", marks=pytest.mark.slow),
    ],
)
def test_training_stops_and_names_it(tmp_path, mesh, lora):
    optimizer = OptimizerConfig(learning_rate=1e30, steps=6)
    config = dataclasses.replace(RUN, optimizer=optimizer, check_finite=True, lora=lora)
    # The first update by 1e30 makes weights whose squares float32 does not hold: the norm of any state.
    with pytest.raises(NonFiniteLoss, match=r"step 2 is not finite, beginning with the (output of layer 0|final norm)"):
        fit(tmp_path, config, mesh)


@pytest.mark.slow
def test_checked_training_is_the_same_training(tmp_path):
    off, on = (fit(tmp_path / str(c), dataclasses.replace(RUN, check_finite=c)) for c in (False, True))
    # The same sums, which a compiler may fuse in another way.
    assert on.losses == pytest.approx(off.losses, rel=1e-5)


def test_nothing_is_looked_at_when_it_is_off(params):
    optimizer, loss = make_optimizer(OptimizerConfig(steps=6)), loss_of()
    state = create_state(params, optimizer)
    looks = {}
    for check in (False, True):
        step = partial(train_step, loss=loss, optimizer=optimizer, check_finite=check)
        looks[check] = str(jax.make_jaxpr(step)(state, ROWS)).count("is_finite")
    without = str(jax.make_jaxpr(jax.value_and_grad(loss, has_aux=True))(params, next(Batches()))).count("is_finite")
    assert looks[False] == without  # those of jax.nn.logsumexp
    assert looks[True] == without + len(jax.tree.leaves(params)) + 1  # each gradient, and the loss
