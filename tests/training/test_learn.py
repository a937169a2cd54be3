"""Learning a scale vector: gradients against differences of the loss, and that the loss falls."""

import contextlib
import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from rope_jax.errors import InputError
from rope_jax.model.llama import init_params
from rope_jax.rope.embedding import ScaleVector
from rope_jax.rope.methods.interpolation import ntk
from rope_jax.sharding import make_mesh, param_shardings
from rope_jax.training.learn import (
    LearnConfig,
    from_logarithms,
    learn,
    to_logarithms,
)
from rope_jax.training.loop import train
from rope_jax.training.lora import LoraConfig
from rope_jax.training.state import OptimizerConfig
from rope_jax.training.step import mean_loss
from rope_jax.training.trained import TrainConfig
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
    start = to_logarithms(ScaleVector.create(ntk(8, 2.0).factors))

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


JOINT = TrainConfig(
    OptimizerConfig(learning_rate=1e-3, steps=6, eps=1e-2),
    length=24,
    global_batch=8,
    accumulation=2,
    loss_chunk=8,
    checkpoint_every=2,
    learn=LearnConfig(learning_rate=0.05),
)


def jointly(folder, settings=JOINT, mesh=None, stop_at=None, batches=None):
    """Weights, scale vector, and the losses on the way."""
    mesh = mesh or make_mesh(1, 1, 1, jax.devices()[:1])
    losses = []

    @contextlib.contextmanager
    def report(start):
        def on_step(step, metrics):
            losses.append(metrics["loss"])
            if step == stop_at:
                raise KeyboardInterrupt

        yield on_step

    def initial():
        return jax.device_put(nn.unbox(init_params(SHARP, jax.random.key(1))), param_shardings(SHARP, mesh))

    start = ScaleVector.create(np.full(4, 2.0), 1.1)
    return *train(SHARP, start, settings, mesh, initial, batches or Batches(rows=4), folder, report), losses


class Same(Batches):
    def __next__(self):
        self.number = 0
        return super().__next__()


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=4.0, targets=("q", "norm"))])
def test_weights_and_vector_together(params, tmp_path, lora):
    weights, scale, losses = jointly(tmp_path, dataclasses.replace(JOINT, lora=lora), batches=Same(rows=4))
    assert losses[-1] < losses[0]
    assert (np.abs(np.asarray(scale.factors) - 2) > 0.01).all()
    assert float(scale.attention_factor) == pytest.approx(1.1, rel=1e-6)  # exp(log 1.1)
    before, after = (tree["layers"]["attention"] for tree in (params, weights))
    query, value = (np.array_equal(before[name]["kernel"], after[name]["kernel"]) for name in "qv")
    assert not query and value == bool(lora)


def test_together_resumed_and_on_eight_devices(tmp_path):
    whole = jointly(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        jointly(tmp_path / "parts", stop_at=5)
    parts = jointly(tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole[:2], parts[:2])
    eight = jointly(tmp_path / "eight", mesh=make_mesh(2, 2, 2))
    # The same sums in another order.
    np.testing.assert_allclose(eight[2], whole[2], rtol=1e-5)
    np.testing.assert_allclose(eight[1].factors, whole[1].factors, rtol=1e-3)


def test_unusable():
    with pytest.raises(InputError, match=r"^learn\.learning_rate is 0"):
        LearnConfig(learning_rate=0.0)
    with pytest.raises(InputError, match=r"^learn\.loss_chunk is 0"):
        LearnConfig(loss_chunk=0)
    with pytest.raises(InputError, match="no batch"):
        learn({}, SHARP, ScaleVector.create(np.ones(4)), [])
