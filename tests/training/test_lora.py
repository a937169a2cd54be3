"""LoRA: the applied update against the merged one, gradients, what is frozen, meshes and resume."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from rope_jax.model.llama import Llama
from rope_jax.model.lora import LoraConfig, apply_lora, init_lora, merge_lora
from rope_jax.training.config import OptimizerConfig, make_optimizer
from rope_jax.training.objective import LoraObjective
from rope_jax.training.state import create_state
from rope_jax.training.step import train_step
from rope_jax.training.update import Training
from tests.training import helpers
from tests.training.helpers import CONFIG, ROPE, Batches, fit, identical, initial, loss_of, mesh_of

ALL = ("q", "k", "v", "o", "gate", "up", "down", "norm", "embedding", "head")
LORA = LoraConfig(rank=3, alpha=6.0, targets=ALL)
RUN = dataclasses.replace(
    helpers.RUN,
    optimizer=OptimizerConfig(learning_rate=1e-2, steps=6, clip_norm=1.0, eps=1e-2),
    lora=dataclasses.replace(LORA, targets=("q", "o", "norm", "embedding")),
)


@pytest.fixture(scope="module")
def frozen():
    return initial()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run on one device."""
    return fit(tmp_path_factory.mktemp("whole"), RUN)


def disturbed(frozen, lora=LORA, seed=1):
    """Trained factors in which B is not zero any more."""
    trained = init_lora(frozen, CONFIG, lora)
    leaves, structure = jax.tree.flatten(trained)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)]
    return jax.tree.unflatten(structure, moved)


def logits(params, tokens, adapters=None, config=CONFIG):
    return Llama(config).apply({"params": params, "lora": adapters or {}}, tokens, ROPE)


def test_a_fresh_adapter_changes_nothing(frozen):
    tokens = next(Batches())["tokens"]
    params, adapters = apply_lora(frozen, init_lora(frozen, CONFIG, LORA), LORA)
    np.testing.assert_array_equal(logits(params, tokens, adapters), logits(frozen, tokens))


def test_initial_factors_are_those_of_peft(frozen):
    """Kaiming uniform with a = sqrt(5), which is uniform in +-1/sqrt(inputs), and zeros."""
    found = flatten_dict(init_lora(frozen, CONFIG, dataclasses.replace(LORA, rank=32))["factors"])
    a, b = found["layers", "attention", "o", "a"], found["layers", "attention", "o", "b"]
    assert a.shape == (2, 4, 8, 32) and b.shape == (2, 32, 32)
    bound = 1 / np.sqrt(32)
    # 2048 uniform numbers: the largest is within one percent of the bound, but for a chance of (0.99)^2048.
    assert 0.99 * bound < np.abs(a).max() <= bound
    assert not b.any()


@pytest.mark.slow
def test_applied_equals_numpy_kernels(frozen):
    """`W + (alpha/r) A B` formed in float64, run through the model without adapters."""
    trained = disturbed(frozen)
    params, adapters = apply_lora(frozen, trained, LORA)
    config = dataclasses.replace(CONFIG, remat="full")
    tokens = next(Batches())["tokens"]
    reference = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for name in ("attention", "feed_forward"):
        for projection, kernel in reference["layers"][name].items():
            a, b = (np.asarray(trained["factors"]["layers"][name][projection][part], np.float64) for part in "ab")
            for layer in range(2):
                change = a[layer].reshape(-1, 3) @ b[layer].reshape(3, -1)
                kernel["kernel"][layer] += 6.0 / 3 * change.reshape(kernel["kernel"][layer].shape)
    reference = jax.tree.map(lambda leaf: leaf.astype(np.float32), reference)
    expected = logits(reference, tokens)
    # float32 products in another order, logits of order 1.
    np.testing.assert_allclose(logits(params, tokens, adapters, config), expected, atol=2e-5)
    merged = merge_lora(frozen, trained, LORA)
    np.testing.assert_allclose(logits(merged, tokens), expected, atol=2e-5)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, frozen)


@pytest.mark.slow
def test_gradient_is_the_full_one_projected(frozen):
    """dL/dB = s A^T dL/dW and dL/dA = s dL/dW B^T, with dL/dW of full training at the merged weights."""
    trained = disturbed(frozen)
    rows = {name: value[None] for name, value in next(Batches()).items()}
    descent = optax.sgd(1.0)  # an update is then the gradient itself
    merged = merge_lora(frozen, trained, LORA)

    def after(trained, run):
        step = jax.jit(lambda state: train_step(state, rows, loss_of(run, params=frozen), descent))
        return step(create_state(trained, descent))[0].params

    full, low = (after(start, dataclasses.replace(RUN, lora=lora)) for start, lora in ((merged, None), (trained, LORA)))
    gradient = jax.tree.map(lambda before, after: before - after, merged, full)
    factors = jax.tree.map(lambda before, after: before - after, trained, low)
    whole = flatten_dict(factors["whole"])
    # Differences of float32 numbers of order 0.3 are exact to 3e-8; sums in another order on top.
    for path, leaf in whole.items():
        np.testing.assert_allclose(leaf, flatten_dict(gradient)[path], atol=1e-6)
    a, b = (
        trained["factors"]["layers"]["attention"]["o"][part][0].reshape(shape)
        for part, shape in (("a", (32, 3)), ("b", (3, 32)))
    )
    kernel = gradient["layers"]["attention"]["o"]["kernel"][0].reshape(32, 32)
    found = factors["factors"]["layers"]["attention"]["o"]
    np.testing.assert_allclose(found["b"][0], 2 * a.T @ kernel, atol=2e-6)
    np.testing.assert_allclose(found["a"][0].reshape(32, 3), 2 * kernel @ b.T, atol=2e-6)


def test_only_targets_change_and_the_state_is_small(frozen, whole):
    after = flatten_dict(whole.model.params)
    for path, before in flatten_dict(frozen).items():
        targeted = path[-2:] in {("q", "kernel"), ("o", "kernel")} or path[-1] in ("weight", "embedding")
        assert np.array_equal(before, after[path]) != targeted, path
    trained = Training(CONFIG, RUN, mesh_of(8, 1, 1)).abstract_state(ROPE).params
    # Two layers; q is 32 to 4 x 8, o back, of rank 3; norms are 2 x 2 + 1 of 32; the embedding is of 64 x 32.
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == 2 * 3 * 2 * (32 + 32) + 5 * 32 + 64 * 32


def test_loss_falls(whole, tmp_path):
    losses = fit(tmp_path, RUN, batches=Batches(same=True)).losses
    assert losses[0] == whole.losses[0] and losses[-1] < losses[0] - 0.1


def test_resume_is_bitwise_the_same(whole, tmp_path):
    fit(tmp_path, RUN, stop_at=5)
    resumed = fit(tmp_path, RUN)
    assert resumed.start == 4 and identical(whole.model, resumed.model)
    finished = fit(tmp_path, RUN)
    assert finished.steps == [] and identical(whole.model, finished.model)


def test_eight_devices_equal_one(whole, tmp_path):
    eight = fit(tmp_path, RUN, mesh_of(2, 2, 2))
    for a, b in zip(whole.metrics, eight.metrics, strict=True):
        # The same sums in another order; six updates of Adam let rounding grow a little.
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole.model, eight.model)


def test_factors_are_cut_as_their_kernels():
    shardings = LoraObjective(CONFIG, RUN.lora).shardings(mesh_of(1, 4, 2))
    o = shardings["factors"]["layers"]["attention"]["o"]
    assert tuple(o["a"].spec) == (None, "tensor", None, None)
    assert tuple(o["b"].spec) == (None, None, "fsdp")


@pytest.mark.slow
def test_bfloat16_weights_keep_float32_factors():
    model = dataclasses.replace(CONFIG, dtype="bfloat16", param_dtype="bfloat16")
    frozen = initial(model=model)
    optimizer = make_optimizer(RUN.optimizer)
    state = create_state(init_lora(frozen, model, RUN.lora), optimizer)
    rows = {name: value[None] for name, value in next(Batches()).items()}
    state, metrics = jax.jit(lambda s: train_step(s, rows, loss_of(RUN, model, params=frozen), optimizer))(state)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
    assert np.isfinite(metrics["loss"])
    merged = merge_lora(frozen, state.params, RUN.lora)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(merged))
