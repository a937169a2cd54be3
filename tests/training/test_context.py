"""Training with sequences cut over devices is training on one device."""

import contextlib
import dataclasses
import re
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from rope_jax.errors import InputError
from rope_jax.model.llama import init_params
from rope_jax.rope.embedding import ScaleVector
from rope_jax.training import trained
from rope_jax.training.context import attention_on, check_length
from rope_jax.training.learn import LearnConfig, learn
from rope_jax.training.loop import train
from rope_jax.training.lora import LoraConfig
from rope_jax.training.sharding import batch_sharding, check_batch, make_mesh, param_shardings, row_sharding
from rope_jax.training.state import OptimizerConfig, create_state
from rope_jax.training.step import train_step
from rope_jax.training.trained import TrainConfig
from tests.training.helpers import CONFIG, Batches

LENGTH = 32
ROPE = ScaleVector.create(np.linspace(1.0, 2.0, 4))
RUN = TrainConfig(
    # As in test_loop.py, a large eps makes an update a smooth function of the gradient.
    OptimizerConfig(learning_rate=1e-2, steps=4, clip_norm=1.0, weight_decay=0.1, eps=1e-2),
    length=LENGTH,
    global_batch=8,
    loss_chunk=6,
    checkpoint_every=2,
)
MISTRAL = dataclasses.replace(CONFIG, architecture="mistral", sliding_window=7, remat=True)
SIZES = {
    "data=2,context=4": (2, 1, 1, 4),
    "fsdp=2,tensor=2,context=2": (1, 2, 2, 2),
    "context=4 of 4": (1, 1, 1, 4),
}


def mesh_of(data, fsdp, tensor, context):
    count = data * fsdp * tensor * context
    return make_mesh(data, fsdp, tensor, jax.devices()[:count], context=context)


def initial(mesh, config=CONFIG):
    return jax.device_put(nn.unbox(init_params(config, jax.random.key(0))), param_shardings(config, mesh))


def one_step(mesh, config, accumulation=1):
    """Metrics and the negative of the gradients of one step; rows hold two documents each, cut anywhere."""
    optimizer = optax.sgd(1.0)
    rows = {k: v.reshape(accumulation, -1, LENGTH) for k, v in next(Batches(length=LENGTH)).items()}
    with jax.set_mesh(mesh):
        rows = jax.device_put(rows, batch_sharding(mesh, leading=1))
        state = create_state(initial(mesh, config), optimizer)
        loss = trained.loss(config, RUN, None, ROPE, mesh)
        after, metrics = jax.jit(partial(train_step, loss=loss, optimizer=optimizer))(state, rows)
        updates = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), after.params, state.params)
        return jax.device_get(metrics), updates


@pytest.fixture(scope="module")
def alone():
    return {config: one_step(mesh_of(1, 1, 1, 1), config) for config in (CONFIG, MISTRAL)}


@pytest.mark.parametrize("config", [CONFIG, MISTRAL], ids=["llama", "mistral"])
@pytest.mark.parametrize("sizes", SIZES)
def test_a_step_over_cut_sequences_equals_that_of_one_device(alone, sizes, config):
    expected, gradients = alone[config]
    found, ours = one_step(mesh_of(*SIZES[sizes]), config, accumulation=2)
    assert found["tokens"] == expected["tokens"]
    # Sums of some hundred float32 terms in another order.
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=2e-6)
    np.testing.assert_allclose(found["grad_norm"], expected["grad_norm"], rtol=1e-5)
    # Gradients here are of order 1e-2; read off an update of weights of order 1, they carry rounding of 6e-8.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, gradients)


def run(folder, mesh, settings=RUN, losses=None):
    @contextlib.contextmanager
    def report(start):
        yield lambda step, metrics: losses.append(metrics["loss"]) if losses is not None else None

    return train(CONFIG, ROPE, settings, mesh, partial(initial, mesh), Batches(length=LENGTH), folder, report)


LEARNED = dataclasses.replace(RUN, lora=LoraConfig(2, 4.0, ("q", "v")), learn=LearnConfig(loss_chunk=6))


@pytest.mark.parametrize("settings", [RUN, LEARNED], ids=["weights", "lora and factors"])
def test_a_run_over_cut_sequences_equals_that_of_one_device(tmp_path, settings):
    one, four = [], []
    expected, vector = run(tmp_path / "one", mesh_of(1, 1, 1, 1), settings, one)
    found, ours = run(tmp_path / "four", mesh_of(2, 1, 1, 4), settings, four)
    # As in test_loop.py: the same sums in another order, grown a little by some updates of Adam.
    np.testing.assert_allclose(four, one, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected)
    np.testing.assert_allclose(ours.factors, vector.factors, rtol=1e-5)


def test_a_checkpoint_goes_on_over_another_cut(tmp_path):
    half = dataclasses.replace(RUN, optimizer=dataclasses.replace(RUN.optimizer, steps=2))
    run(tmp_path / "run", mesh_of(1, 1, 2, 4), half)
    resumed, _ = run(tmp_path / "run", mesh_of(1, 2, 1, 1))
    whole, _ = run(tmp_path / "whole", mesh_of(1, 1, 1, 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), resumed, whole)


def test_factors_are_learned_over_cut_sequences():
    found = {}
    for name, mesh in (("one", mesh_of(1, 1, 1, 1)), ("eight", mesh_of(2, 1, 1, 4))):
        with jax.set_mesh(mesh):
            rows = [jax.device_put(next(Batches(length=LENGTH)), batch_sharding(mesh))] * 2
            found[name] = learn(initial(mesh), CONFIG, ROPE, rows, LearnConfig(loss_chunk=6), mesh)
    np.testing.assert_allclose(found["eight"].losses, found["one"].losses, rtol=2e-6)
    # Adam's first updates are near the gradient's sign: not of the gradients' own precision.
    np.testing.assert_allclose(found["eight"].scale.factors, found["one"].scale.factors, rtol=1e-4)


def compiled(mesh, config, length, chunk):
    optimizer = optax.sgd(1.0)
    with jax.set_mesh(mesh):
        settings = dataclasses.replace(RUN, loss_chunk=chunk)
        state = jax.eval_shape(partial(create_state, optimizer=optimizer), nn.unbox(init_params_shape(config)))
        shardings = param_shardings(config, mesh)
        params = jax.tree.map(
            lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), state.params, shardings
        )
        rows = {
            name: jax.ShapeDtypeStruct((1, 2, length), np.int32, sharding=batch_sharding(mesh, leading=1))
            for name in ("tokens", "segment_ids", "positions")
        }
        step = partial(train_step, loss=trained.loss(config, settings, None, ROPE, mesh), optimizer=optimizer)
        return jax.jit(step).lower(dataclasses.replace(state, params=params), rows).compile()


def init_params_shape(config):
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def test_no_device_holds_a_whole_sequence():
    """Memory falls with the devices of a ring, and neither states nor logits are gathered."""
    config = dataclasses.replace(CONFIG, vocab_size=512, hidden_size=64, intermediate_size=128, attention_chunk=64)
    one, eight = (compiled(mesh_of(1, 1, 1, n), config, 2048, 64) for n in (1, 8))
    # States and their gradients are an eighth; parameters, and the scores of a chunk, are not.
    assert eight.memory_analysis().temp_size_in_bytes < one.memory_analysis().temp_size_in_bytes / 4
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", eight.as_text())
    # Tokens, documents, positions, targets and weights are, which is 4 bytes per token each.
    assert all(np.prod([int(d) for d in shape.split(",") if d]) <= 2 * 2048 for shape in gathered), gathered


def test_rows_are_cut_for_training_and_whole_for_evaluation():
    mesh = mesh_of(2, 1, 1, 4)
    assert batch_sharding(mesh).shard_shape((8, LENGTH)) == (4, LENGTH // 4)
    assert row_sharding(mesh).shard_shape((8, LENGTH)) == (1, LENGTH)


def test_messages():
    mesh = mesh_of(1, 2, 1, 4)
    check_length(mesh, 24, "config.context.target")
    check_length(mesh_of(1, 2, 1, 1), 7, "config.context.target")
    with pytest.raises(InputError, match=r"config\.context\.target is 28, but config\.mesh\.context = 4 .*of 8"):
        check_length(mesh, 28, "config.context.target")
    with pytest.raises(InputError, match=r"config\.eval\.batch is 4.*data x fsdp x context = 8.*multiple of 8"):
        check_batch(mesh, 4, "config.eval.batch", "rows")
    with pytest.raises(InputError, match=r"config\.model\.attention is 'splash'.*'auto' or 'cpu'"):
        attention_on(dataclasses.replace(CONFIG, attention="splash"), mesh)
