"""LoRA: the applied update against the merged one, gradients, what is frozen, meshes and resume."""

import contextlib
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from rope_jax.errors import InputError
from rope_jax.model.llama import Llama, init_params
from rope_jax.rope.embedding import ScaleVector
from rope_jax.sharding import make_mesh, param_shardings
from rope_jax.training import trained as what
from rope_jax.training.loop import train
from rope_jax.training.lora import LoraConfig, applied, check_targets, init_trained, merge
from rope_jax.training.state import OptimizerConfig, create_state, make_optimizer
from rope_jax.training.step import train_step
from rope_jax.training.trained import TrainConfig
from tests.training.helpers import CONFIG, Batches

ROPE = ScaleVector.create(np.linspace(1.0, 2.0, 4))
ALL = ("q", "k", "v", "o", "gate", "up", "down", "norm", "embedding", "head")
LORA = LoraConfig(rank=3, alpha=6.0, targets=ALL)
RUN = TrainConfig(
    OptimizerConfig(learning_rate=1e-2, steps=6, clip_norm=1.0, eps=1e-2),
    length=24,
    global_batch=8,
    loss_chunk=10,
    checkpoint_every=2,
    lora=dataclasses.replace(LORA, targets=("q", "o", "norm", "embedding")),
)


@pytest.fixture(scope="module")
def frozen():
    return nn.unbox(init_params(CONFIG, jax.random.key(0)))


def disturbed(frozen, lora=LORA, seed=1):
    """Trained factors in which B is not zero any more."""
    trained = init_trained(frozen, CONFIG, lora)
    leaves, structure = jax.tree.flatten(trained)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)]
    return jax.tree.unflatten(structure, moved)


def logits(params, tokens, adapters=None, config=CONFIG):
    return Llama(config).apply({"params": params, "lora": adapters or {}}, tokens, ROPE)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def run(folder, settings=RUN, mesh=None, stop_at=None, losses=None):
    mesh = mesh or make_mesh(1, 1, 1, jax.devices()[:1])
    shardings = param_shardings(CONFIG, mesh)

    @contextlib.contextmanager
    def report(start):
        def on_step(step, metrics):
            if losses is not None:
                losses.append(metrics)
            if step == stop_at:
                raise KeyboardInterrupt

        yield on_step

    def initial():
        return jax.device_put(nn.unbox(init_params(CONFIG, jax.random.key(0))), shardings)

    return train(CONFIG, ROPE, settings, mesh, initial, Batches(), folder, report)[0]


def test_a_fresh_adapter_changes_nothing(frozen):
    tokens = next(Batches())["tokens"]
    params, adapters = applied(frozen, init_trained(frozen, CONFIG, LORA), LORA)
    np.testing.assert_array_equal(logits(params, tokens, adapters), logits(frozen, tokens))


def test_initial_factors_are_those_of_peft(frozen):
    """Kaiming uniform with a = sqrt(5), which is uniform in +-1/sqrt(inputs), and zeros."""
    found = flatten_dict(init_trained(frozen, CONFIG, dataclasses.replace(LORA, rank=32))["factors"])
    a, b = found["layers", "attention", "o", "a"], found["layers", "attention", "o", "b"]
    assert a.shape == (2, 4, 8, 32) and b.shape == (2, 32, 32)
    bound = 1 / np.sqrt(32)
    # 2048 uniform numbers: the largest is within one percent of the bound, but for a chance of (0.99)^2048.
    assert 0.99 * bound < np.abs(a).max() <= bound
    assert not b.any()


def test_applied_equals_numpy_kernels(frozen):
    """`W + (alpha/r) A B` formed in float64, run through the model without adapters."""
    trained = disturbed(frozen)
    params, adapters = applied(frozen, trained, LORA)
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
    merged = merge(frozen, trained, LORA)
    np.testing.assert_allclose(logits(merged, tokens), expected, atol=2e-5)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, frozen)


def test_gradient_is_the_full_one_projected(frozen):
    """dL/dB = s A^T dL/dW and dL/dA = s dL/dW B^T, with dL/dW of full training at the merged weights."""
    trained = disturbed(frozen)
    rows = {name: value[None] for name, value in next(Batches()).items()}
    descent = optax.sgd(1.0)  # an update is then the gradient itself
    merged = merge(frozen, trained, LORA)

    def after(trained, run):
        step = jax.jit(lambda state: train_step(state, rows, what.loss(CONFIG, run, frozen, ROPE), descent))
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


def test_only_targets_change_and_the_state_is_small(frozen, tmp_path):
    lora = LoraConfig(rank=2, alpha=4.0, targets=("q", "v", "norm"))
    after = flatten_dict(run(tmp_path, dataclasses.replace(RUN, lora=lora)))
    for path, before in flatten_dict(frozen).items():
        targeted = path[-2:] in {("q", "kernel"), ("v", "kernel")} or path[-1] == "weight"
        assert np.array_equal(before, after[path]) != targeted, path
    layout, _ = what.layout(CONFIG, dataclasses.replace(RUN, lora=lora), make_mesh(-1, 1, 1), ROPE)
    # Two layers; q is 32 to 4 x 8, v 32 to 2 x 8; norms are 2 x 2 + 1 of 32.
    assert sum(leaf.size for leaf in jax.tree.leaves(layout)) == 2 * 2 * ((32 + 32) + (32 + 16)) + 5 * 32


def test_loss_falls(tmp_path):
    losses = []

    class Same(Batches):
        def __next__(self):
            self.number = 0
            return super().__next__()

    settings = dataclasses.replace(RUN, optimizer=OptimizerConfig(learning_rate=2e-2, steps=15))
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])

    @contextlib.contextmanager
    def report(start):
        yield lambda step, metrics: losses.append(metrics["loss"])

    train(
        CONFIG, ROPE, settings, mesh, lambda: nn.unbox(init_params(CONFIG, jax.random.key(0))), Same(), tmp_path, report
    )
    assert losses[-1] < losses[0] - 0.2


def test_resume_is_bitwise_the_same(tmp_path):
    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", stop_at=5)
    assert same(whole, run(tmp_path / "parts"))
    steps = []
    assert same(whole, run(tmp_path / "parts", losses=steps)) and steps == []


def test_eight_devices_equal_one(tmp_path):
    one, eight = [], []
    first = run(tmp_path / "one", losses=one)
    second = run(tmp_path / "eight", mesh=make_mesh(2, 2, 2), losses=eight)
    for a, b in zip(one, eight, strict=True):
        # The same sums in another order; six updates of Adam let rounding grow a little.
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), first, second)


def test_factors_are_cut_as_their_kernels():
    _, shardings = what.layout(CONFIG, RUN, make_mesh(1, 4, 2), ROPE)
    o = shardings["factors"]["layers"]["attention"]["o"]
    assert tuple(o["a"].spec) == (None, "tensor", None, None)
    assert tuple(o["b"].spec) == (None, None, "fsdp")


def test_bfloat16_weights_keep_float32_factors(tmp_path):
    config = dataclasses.replace(CONFIG, dtype="bfloat16", param_dtype="bfloat16")
    frozen = nn.unbox(init_params(config, jax.random.key(0)))
    optimizer = make_optimizer(RUN.optimizer)
    state = create_state(init_trained(frozen, config, RUN.lora), optimizer)
    rows = {name: value[None] for name, value in next(Batches()).items()}
    step = jax.jit(lambda state: train_step(state, rows, what.loss(config, RUN, frozen, ROPE), optimizer))
    state, metrics = step(state)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
    assert np.isfinite(metrics["loss"])
    merged = merge(frozen, state.params, RUN.lora)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(merged))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, r"lora\.rank is 0"),
        ({"alpha": 0.0}, r"lora\.alpha is 0"),
        ({"targets": ("q_proj",)}, r"lora\.targets names 'q_proj': use some of q, k"),
        ({"targets": ("norm",)}, r"lora\.targets is .*name a projection"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(LORA, **fields)


def test_targets_that_the_model_lacks():
    with pytest.raises(InputError, match=r"names 'head', which this model does not have"):
        check_targets(LORA, dataclasses.replace(CONFIG, tie_embeddings=True))
    with pytest.raises(InputError, match=r"lora\.rank is 33"):
        check_targets(dataclasses.replace(LORA, rank=33), CONFIG)
