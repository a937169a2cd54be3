"""Training: the same on any mesh, the same with or without a stop, and against optax by hand."""

import dataclasses
import shutil
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rope_jax.data.mixed import Mix
from rope_jax.errors import InputError
from rope_jax.model.llama import Llama
from rope_jax.rope.embedding import ScaleVector
from rope_jax.training import update
from rope_jax.training.checkpoints import losses
from rope_jax.training.config import OptimizerConfig, make_optimizer
from rope_jax.training.finite import NonFiniteLoss
from rope_jax.training.learn import LearnConfig
from rope_jax.training.state import Variables, create_state
from rope_jax.training.step import summed_loss, train_step
from rope_jax.training.update import Training
from tests.processes import python
from tests.training.helpers import CONFIG, ONE, ROPE, RUN, Batches, fit, identical, initial, loss_of, mesh_of, steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run on one device, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return fit(folder), folder


def reference_step(params, rows, optimizer, opt_state):
    """One update written out: dense logits, a masked mean, optax."""

    def loss(params):
        logits = Llama(CONFIG).apply({"params": params}, rows["tokens"], ROPE, rows["positions"], rows["segment_ids"])
        nll = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], rows["tokens"][:, 1:])
        mask = (rows["segment_ids"][:, :-1] == rows["segment_ids"][:, 1:]).astype(nll.dtype)
        return jnp.sum(nll * mask) / jnp.sum(mask)

    value, grads = jax.value_and_grad(loss)(params)
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic
        updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value


def test_step_equals_optax_by_hand(whole):
    """Losses of a run with one microbatch, and losses and parameters of steps with four."""
    optimizer = make_optimizer(RUN.optimizer)
    step = jax.jit(partial(train_step, loss=loss_of(), optimizer=optimizer))
    expected = initial()
    state, opt_state = create_state(expected, optimizer), optimizer.init(expected)
    batches, reference = Batches(), jax.jit(partial(reference_step, optimizer=optimizer))
    for one in whole[0].metrics[:3]:
        rows = next(batches)
        expected, opt_state, loss = reference(expected, rows, opt_state=opt_state)
        state, four = step(state, {k: v.reshape(4, -1, v.shape[-1]) for k, v in rows.items()})
        # Sums of some hundred float32 terms in another order.
        assert (one["loss"], float(four["loss"])) == pytest.approx((float(loss),) * 2, rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, expected)


@pytest.mark.parametrize(
    "sizes", [(2, 2, 2), *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in ((8, 1, 1), (1, 4, 2)))], ids=str
)
def test_eight_devices_equal_one(whole, tmp_path, sizes):
    eight = fit(tmp_path, mesh=mesh_of(*sizes))
    for one, other in zip(whole[0].metrics, eight.metrics, strict=True):
        # The same sums in another order; six updates of Adam let rounding grow a little.
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
        assert other["tokens"] == one["tokens"]


def test_short_documents_are_trained_under_the_original_vector():
    """The gradient of a step of mixed microbatches is that of both halves, each computed under its own vector."""
    original, batches = ScaleVector.create(np.ones(4)), Batches()
    long, short = next(batches), next(batches)
    config = dataclasses.replace(RUN, mix=Mix(0.5, 16), learn=LearnConfig(attention_factor=True))
    training, base = Training(CONFIG, config, ONE), Variables(initial(), ROPE, original=original)
    trained, frozen = training.objective.start(base), training.objective.frozen(base)
    stacked = {name: np.stack([long[name], short[name]]) for name in long} | {"short": np.array([False, True])}
    state = create_state(trained, optax.sgd(1.0))
    after, metrics = jax.jit(partial(train_step, loss=training.loss(frozen), optimizer=optax.sgd(1.0)))(state, stacked)

    def reference(params, rope):
        halves = [summed_loss(Variables(params, r), rows, CONFIG, 10) for r, rows in ((rope, long), (original, short))]
        (a, m), (b, n) = halves
        return (a + b) / (m + n)

    loss, (of_weights, of_rope) = jax.jit(jax.value_and_grad(reference, argnums=(0, 1)))(base.params, ROPE)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-6)
    moved = jax.tree.map(lambda a, b: a - b, trained, after.params)
    # Sums of some hundred float32 terms in another order. A logarithm's gradient is its number's times the number.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), moved["weights"], of_weights)
    expected = jax.tree.map(lambda a, b: a * b, of_rope, ROPE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), moved["rope"], expected)


def test_bfloat16_compute_keeps_float32_masters(whole):
    optimizer = make_optimizer(RUN.optimizer)
    rows = {k: v[None] for k, v in next(Batches()).items()}
    model = dataclasses.replace(CONFIG, dtype="bfloat16")
    step = jax.jit(partial(train_step, loss=loss_of(model=model), optimizer=optimizer))
    state, metrics = step(create_state(initial(model=model), optimizer), rows)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((state.params, state.opt_state[-1][0].mu)))
    # bfloat16 keeps 8 bits: a loss of ln 64 is good to about 4e-3 relative, and averaging over tokens helps.
    float32 = whole[0].metrics[0]
    assert float(metrics["loss"]) == pytest.approx(float32["loss"], rel=4e-3)
    assert float(metrics["grad_norm"]) == pytest.approx(float32["grad_norm"], rel=2e-2)
    # Masters moved by less than bfloat16 could show: an update of 1e-2 on weights of 2e-2 is not rounded to 8 bits.
    kernel = np.asarray(state.params["layers"]["feed_forward"]["up"]["kernel"])
    assert np.any(kernel != kernel.astype(jnp.bfloat16).astype(np.float32))


def test_resume_is_bitwise_the_same(whole, tmp_path):
    assert fit(tmp_path, stop_at=5).steps == [1, 2, 3, 4, 5]
    resumed = fit(tmp_path)
    assert resumed.start == 4 and resumed.steps == [5, 6]
    assert identical(whole[0].model, resumed.model)


def test_checkpoint_resumes_on_another_mesh(whole, tmp_path):
    fit(tmp_path, mesh=mesh_of(2, 2, 2), stop_at=5)
    resumed = fit(tmp_path)
    assert resumed.start == 4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole[0].model, resumed.model)


def test_finished_run_trains_no_more(whole):
    first, folder = whole
    second = fit(folder)
    assert second.steps == []
    assert identical(first.model, second.model)


def test_non_finite_loss_names_its_step_and_keeps_what_was(tmp_path):
    config = dataclasses.replace(RUN, optimizer=OptimizerConfig(learning_rate=1e30, steps=6))
    with pytest.raises(NonFiniteLoss, match=r"at step [2-6]; earlier checkpoints are kept"):
        fit(tmp_path, config)


@jax.custom_vjp
def poisoned(weight, when):
    """The weight, whose gradient is NaN where `when` holds."""
    return weight


poisoned.defvjp(lambda weight, when: (weight, when), lambda when, g: (jnp.where(when, jnp.nan, g), None))


def test_a_step_whose_gradient_is_not_finite_is_neither_saved_nor_returned(tmp_path, monkeypatch):
    batches = Batches()
    last = [next(batches) for _ in range(6)][-1]["tokens"].sum()
    summed_loss = update.summed_loss

    def loss(variables, rows, *rest):
        weight = poisoned(variables.params["norm"]["weight"], jnp.sum(rows["tokens"]) == last)
        params = {**variables.params, "norm": {"weight": weight}}
        return summed_loss(dataclasses.replace(variables, params=params), rows, *rest)

    monkeypatch.setattr(update, "summed_loss", loss)
    # No other test has this configuration, whose compiled step is poisoned.
    config = dataclasses.replace(steps(RUN, 6, learning_rate=1.1e-2), keep=1)
    for _ in range(2):  # the second time from the checkpoint before
        with pytest.raises(NonFiniteLoss, match="the gradient norm is nan at step 6; earlier checkpoints are kept"):
            fit(tmp_path, config)
        assert set(losses(tmp_path)) == {4}


def test_weights_of_16_bits_are_trained_as_float32(tmp_path):
    """To the bit as a float32 model from the same weights; the result is rounded once."""
    model, narrow = dataclasses.replace(CONFIG, param_dtype="float16"), partial(jax.tree.map, jnp.float16)
    start = narrow(initial())
    expected = fit(tmp_path / "a", load=lambda: jax.tree.map(jnp.float32, start)).model.params
    assert identical(fit(tmp_path / "b", model=model, load=lambda: start).model.params, narrow(expected))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    for dtype in ("float16", "bfloat16"):
        training = Training(dataclasses.replace(CONFIG, param_dtype=dtype), RUN, mesh_of(1, 1, 1))
        state = jax.tree.leaves(training.abstract_state(ROPE))
        assert {leaf.dtype.name for leaf in state} == {"float32", "int32"}


def test_half_written_checkpoint_is_passed_over(whole, tmp_path):
    folder = shutil.copytree(whole[1], tmp_path / "run")
    # What a kill during a save leaves: a folder that was never renamed to its step.
    (folder / "6").rename(folder / "6.orbax-checkpoint-tmp-1")
    assert fit(folder).start == 4


def test_checkpoint_of_another_model_is_refused(whole):
    with pytest.raises(InputError, match=str(whole[1] / "6")):
        fit(whole[1], model=dataclasses.replace(CONFIG, intermediate_size=48))


CHILD = """
import sys
from pathlib import Path
from tests.training.helpers import RUN, fit, steps
def show(seen):
    print(len(seen.steps), flush=True)
fit(Path(sys.argv[1]), steps(RUN, 40), should_stop=show)
"""


@pytest.mark.slow
def test_kill_and_resume_is_bitwise_the_same(tmp_path):
    for steps_before_kill in (7, 9):
        with python("-c", CHILD, tmp_path / "killed", JAX_NUM_CPU_DEVICES="8") as child:
            for line in child.stdout or ():
                if int(line) >= steps_before_kill:
                    break
            # Not at a step's end, but wherever the process happens to be.
            time.sleep(0.01 * steps_before_kill)
    resumed = fit(tmp_path / "killed", steps(RUN, 40))
    assert 0 < resumed.start <= 40
    assert identical(resumed.model, fit(tmp_path / "whole", steps(RUN, 40)).model)
