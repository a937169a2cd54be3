"""Learning a scale vector: gradients against differences of the loss, and that the loss falls."""

import dataclasses

import jax
import numpy as np
import pytest

from rope_jax.errors import InputError
from rope_jax.model.lora import LoraConfig
from rope_jax.rope.embedding import ScaleVector
from rope_jax.rope.methods.interpolation import ntk
from rope_jax.training.config import OptimizerConfig, TrainConfig
from rope_jax.training.finite import NonFiniteLoss
from rope_jax.training.learn import LearnConfig, from_logarithms, learn, to_logarithms
from rope_jax.training.state import Variables
from tests.training.helpers import CONFIG, ONE, Batches, fit, initial, mean_loss, mesh_of

# Weights ten times as large as fresh ones: a model whose attention tells positions apart.
SHARP = dataclasses.replace(CONFIG, initializer_range=0.2)


@pytest.fixture(scope="module")
def params():
    return initial(model=SHARP, seed=1)


@pytest.mark.parametrize("rotary", ["float32", "exact"])
def test_gradient_of_the_logarithms_is_the_finite_difference(params, rotary):
    config = dataclasses.replace(SHARP, rotary=rotary)
    batch = next(Batches())
    start = to_logarithms(ScaleVector.create(ntk(8, 2.0).factors))

    @jax.jit
    @jax.value_and_grad
    def loss(logarithms):
        return mean_loss(Variables(params, from_logarithms(logarithms)), batch, config, 8)

    _, gradient = loss(start)
    for pair in range(4):

        def difference(step, pair=pair):
            ahead, behind = (
                dataclasses.replace(start, factors=start.factors.at[pair].add(sign * step)) for sign in (1, -1)
            )
            return (float(loss(ahead)[0]) - float(loss(behind)[0])) / (2 * step)

        # Richardson; a loss of about 5 in float32 is known to 5e-7, so its difference over 2e-2 to 5e-5.
        estimate = (4 * difference(2e-2) - difference(4e-2)) / 3
        assert float(gradient.factors[pair]) == pytest.approx(estimate, rel=2e-2, abs=2e-4)


@pytest.mark.slow
def test_loss_falls_and_weights_stay(params):
    batch, start = next(Batches()), ScaleVector.create(np.full(4, 2.0))
    before = jax.tree.map(np.array, params)
    config = LearnConfig(learning_rate=0.05, loss_chunk=8)
    scale, losses, gradients = learn(Variables(params, start), SHARP, [batch] * 15, config)
    assert losses.shape == (15,)
    loss = jax.jit(jax.value_and_grad(lambda scale: mean_loss(Variables(params, scale), batch, SHARP, 8)))
    value, gradient = loss(start)
    assert losses[0] == pytest.approx(float(value), rel=1e-5)
    # A logarithm's gradient is its number's times the number. The attention factor has one though it stays fixed.
    first = jax.tree.map(lambda each: each[0], gradients)
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a, b * c, rtol=1e-4, atol=1e-6), first, gradient, start)
    assert gradients.factors.shape == (15, 4) and abs(float(first.attention_factor)) > 1e-3
    assert float(loss(scale)[0]) < losses[0] - 1e-3
    assert scale.factors.shape == (4,) and float(scale.factors.min()) > 0
    assert float(scale.attention_factor) == 1
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_a_vector_per_layer_and_the_attention_factor_can_be_learned(params):
    start = ScaleVector.create(np.full((2, 4), 2.0))
    config = LearnConfig(learning_rate=0.05, attention_factor=True, loss_chunk=8)
    scale, losses, _ = learn(Variables(params, start), SHARP, [next(Batches())] * 15, config)
    assert losses[-1] < losses[0] - 1e-3
    assert scale.factors.shape == (2, 4) and float(scale.factors.min()) > 0
    # Adam's first steps are of the size of the learning rate.
    assert abs(np.log(float(scale.attention_factor))) > 0.02


JOINT = TrainConfig(
    OptimizerConfig(learning_rate=1e-3, steps=6, eps=1e-2),
    length=24,
    global_batch=8,
    accumulation=2,
    loss_chunk=8,
    checkpoint_every=2,
    learn=LearnConfig(learning_rate=0.05),
)


START = ScaleVector.create(np.full(4, 2.0), 1.1)


def jointly(folder, config=JOINT, mesh=ONE, **how):
    return fit(folder, config, mesh, model=SHARP, rope=START, seed=1, **how)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=4.0, targets=("q", "norm"))], ids=["all", "lora"])
def test_weights_and_vector_together(params, tmp_path, lora):
    seen = jointly(tmp_path, dataclasses.replace(JOINT, lora=lora), batches=Batches(rows=4, same=True))
    weights, scale = seen.model.params, seen.model.rope
    assert seen.losses[-1] < seen.losses[0]
    assert (np.abs(np.asarray(scale.factors) - 2) > 0.01).all()
    assert float(scale.attention_factor) == pytest.approx(1.1, rel=1e-6)  # exp(log 1.1)
    before, after = (tree["layers"]["attention"] for tree in (params, weights))
    query, value = (np.array_equal(before[name]["kernel"], after[name]["kernel"]) for name in "qv")
    assert not query and value == bool(lora)


@pytest.mark.slow
def test_together_resumed_and_on_eight_devices(tmp_path):
    whole = jointly(tmp_path / "whole")
    jointly(tmp_path / "parts", stop_at=5)
    parts = jointly(tmp_path / "parts")
    assert parts.start == 4
    jax.tree.map(np.testing.assert_array_equal, whole.model, parts.model)
    eight = jointly(tmp_path / "eight", mesh=mesh_of(2, 2, 2))
    # The same sums in another order.
    np.testing.assert_allclose(eight.losses, whole.losses, rtol=1e-5)
    np.testing.assert_allclose(eight.model.rope.factors, whole.model.rope.factors, rtol=1e-3)


def test_a_vector_that_is_not_finite_is_not_returned(params):
    """The first step overflows float32."""
    with pytest.raises(NonFiniteLoss, match="not finite in 1 steps"):
        learn(Variables(params, START), SHARP, [next(Batches())], LearnConfig(learning_rate=3e38, loss_chunk=8))


def test_no_batch_is_refused(params):
    with pytest.raises(InputError) as error:
        learn(Variables(params, START), SHARP, [])
    assert error.value.field == "batches"
