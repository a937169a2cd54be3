"""Learning a scale vector: gradients against differences of the loss, and that the loss falls."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from rope_jax.errors import InputError
from rope_jax.model.llama import init_params
from rope_jax.rope import scaling
from rope_jax.rope.embedding import ScaleVector
from rope_jax.training.learn import (
    LearnConfig,
    from_logarithms,
    joint_optimizer,
    joint_params,
    joint_step,
    learn,
    to_logarithms,
)
from rope_jax.training.state import OptimizerConfig, create_state
from rope_jax.training.step import mean_loss
from tests.training.helpers import CONFIG, Batches

# Weights ten times as large as fresh ones: a model whose attention tells positions apart.
SHARP = dataclasses.replace(CONFIG, initializer_range=0.2)


@pytest.fixture(scope="module")
def params():
    return nn.unbox(init_params(SHARP, jax.random.key(1)))


@pytest.mark.parametrize("rotary", ["float32", "exact"])
def test_gradient_of_the_logarithms_is_the_finite_difference(params, rotary):
    config = dataclasses.replace(SHARP, rotary=rotary)
    batch = next(Batches())
    start = to_logarithms(scaling.ntk(8, 2.0))

    @jax.jit
    def loss(logarithms):
        return mean_loss(params, batch, from_logarithms(logarithms), config, 8)

    gradient = jax.grad(loss)(start)
    for pair in range(4):

        def difference(step, pair=pair):
            ahead, behind = (
                dataclasses.replace(start, factors=start.factors.at[pair].add(sign * step)) for sign in (1, -1)
            )
            return (float(loss(ahead)) - float(loss(behind))) / (2 * step)

        # Richardson; a loss of about 5 in float32 is known to 5e-7, so its difference over 2e-2 to 5e-5.
        estimate = (4 * difference(2e-2) - difference(4e-2)) / 3
        assert float(gradient.factors[pair]) == pytest.approx(estimate, rel=2e-2, abs=2e-4)


@pytest.mark.parametrize("per_layer", [False, True])
def test_loss_falls_and_weights_stay(params, per_layer):
    batch = next(Batches())
    before = jax.tree.map(np.array, params)
    factors = np.full((2, 4) if per_layer else 4, 2.0)
    start = ScaleVector.create(factors)
    learned = learn(params, SHARP, start, [batch] * 15, LearnConfig(learning_rate=0.05, loss_chunk=8))
    assert learned.losses.shape == learned.gradient_norms.shape == (15,)
    assert learned.losses[0] == pytest.approx(float(mean_loss(params, batch, start, SHARP, 8)), rel=1e-5)
    assert float(mean_loss(params, batch, learned.scale, SHARP, 8)) < learned.losses[0] - 1e-3
    assert learned.scale.factors.shape == factors.shape and float(learned.scale.factors.min()) > 0
    assert float(learned.scale.attention_factor) == 1
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_attention_factor_can_be_learned(params):
    learned = learn(
        params,
        SHARP,
        ScaleVector.create(np.ones(4)),
        [next(Batches())] * 2,
        LearnConfig(learning_rate=0.01, attention_factor=True, loss_chunk=8),
    )
    # Adam's first steps are of the size of the learning rate.
    assert abs(np.log(float(learned.scale.attention_factor))) > 0.005


def test_weights_and_vector_together(params):
    learning = LearnConfig(learning_rate=0.05)
    optimizer = joint_optimizer(OptimizerConfig(learning_rate=1e-3), learning)
    state = create_state(joint_params(params, ScaleVector.create(np.full(4, 2.0))), optimizer)
    batch = jax.tree.map(lambda rows: rows.reshape(2, -1, rows.shape[-1]), next(Batches()))
    step = jax.jit(lambda state: joint_step(state, batch, config=SHARP, optimizer=optimizer, loss_chunk=8))
    losses = []
    for _ in range(5):
        state, metrics = step(state)
        losses.append(float(metrics["loss"]))
    scale = from_logarithms(state.params["rope"])
    assert losses[-1] < losses[0]
    assert (np.asarray(scale.factors) != 2).all() and float(scale.attention_factor) == 1
    assert not np.array_equal(state.params["model"]["embedding"], params["embedding"])


def test_unusable():
    with pytest.raises(InputError, match=r"^learn\.learning_rate is 0"):
        LearnConfig(learning_rate=0.0)
    with pytest.raises(InputError, match=r"^learn\.loss_chunk is 0"):
        LearnConfig(loss_chunk=0)
    with pytest.raises(InputError, match="no batch"):
        learn({}, SHARP, ScaleVector.create(np.ones(4)), [])
