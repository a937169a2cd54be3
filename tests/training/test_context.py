"""Training with sequences cut over devices is training on one device."""

import contextlib
import dataclasses
import os
import re
import socket
import subprocess
import sys
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from rope_jax.errors import InputError
from rope_jax.model.llama import init_params
from rope_jax.rope.embedding import ScaleVector
from rope_jax.sharding import (
    batch_sharding,
    check_batch,
    make_mesh,
    param_shardings,
    place_rows,
    process_rows,
    row_sharding,
)
from rope_jax.training import trained
from rope_jax.training.context import check_attention, check_length
from rope_jax.training.learn import LearnConfig, learn
from rope_jax.training.loop import train
from rope_jax.training.state import OptimizerConfig, create_state
from rope_jax.training.step import mean_loss, train_step
from rope_jax.training.trained import TrainConfig
from tests.training.helpers import CONFIG, Batches

LENGTH = 32
ROPE = ScaleVector.create(np.linspace(1.0, 2.0, 4))
RUN = TrainConfig(
    # As in test_loop.py, a large eps makes an update a smooth function of the gradient.
    OptimizerConfig(learning_rate=1e-2, steps=4, clip_norm=1.0, weight_decay=0.1, eps=1e-2),
    length=LENGTH,
    global_batch=8,
    loss_chunk=7,
    checkpoint_every=2,
)
MISTRAL = dataclasses.replace(CONFIG, architecture="mistral", sliding_window=7)
REMAT = dataclasses.replace(CONFIG, remat="full")


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


@pytest.mark.parametrize(
    ("sizes", "config", "accumulation"),
    [
        pytest.param((2, 1, 1, 4), REMAT, 2, id="llama on data=2,context=4"),
        pytest.param((1, 2, 2, 2), MISTRAL, 1, id="mistral on fsdp=2,tensor=2,context=2", marks=pytest.mark.slow),
    ],
)
def test_a_step_over_cut_sequences_equals_that_of_one_device(sizes, config, accumulation):
    expected, gradients = one_step(mesh_of(1, 1, 1, 1), config)
    found, ours = one_step(mesh_of(*sizes), config, accumulation)
    assert found["tokens"] == expected["tokens"]
    # Sums of some hundred float32 terms in another order.
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=2e-6)
    np.testing.assert_allclose(found["grad_norm"], expected["grad_norm"], rtol=1e-5)
    # Gradients here are of order 1e-2; read off an update of weights of order 1, they carry rounding of 6e-8.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, gradients)


class Stop(Exception):
    pass


def run(folder, mesh, settings=RUN, losses=None, stop=None):
    @contextlib.contextmanager
    def report(start):
        def on_step(step, metrics):
            if step == stop:
                raise Stop
            if losses is not None:
                losses.append(metrics["loss"])

        yield on_step

    return train(CONFIG, ROPE, settings, mesh, partial(initial, mesh), Batches(length=LENGTH), folder, report)


@pytest.mark.slow
def test_a_run_over_cut_sequences_equals_that_of_one_device(tmp_path):
    one, four = [], []
    alone, cut = mesh_of(1, 1, 1, 1), mesh_of(2, 1, 1, 4)
    expected, _ = run(tmp_path / "one", alone, losses=one)
    found, _ = run(tmp_path / "four", cut, losses=four)
    # As in test_loop.py: the same sums in another order, grown a little by some updates of Adam.
    np.testing.assert_allclose(four, one, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected)

    # A checkpoint goes on over another cut: two steps here, two there.
    with pytest.raises(Stop):
        run(tmp_path / "both", cut, stop=3)
    found, _ = run(tmp_path / "both", alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected)


@pytest.mark.slow
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


@pytest.mark.slow
def test_no_device_holds_a_whole_sequence():
    """Memory falls with the devices of a ring, and neither states nor logits are gathered."""
    length = 32768
    config = dataclasses.replace(CONFIG, vocab_size=512, attention_chunk=128, remat="full")
    one, eight = (compiled(mesh_of(1, 1, 1, n), config, length, 512) for n in (1, 8))
    # States, their gradients and scores are an eighth; parameters and the logits of a chunk are not. At this length,
    # masks that were formed for all steps at once would outweigh everything.
    assert eight.memory_analysis().temp_size_in_bytes < one.memory_analysis().temp_size_in_bytes / 4
    # Rows are two, hence 2 T tokens.
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", eight.as_text())
    # Tokens, documents, positions, targets and weights are gathered, which is 4 bytes per token each.
    assert gathered
    assert all(np.prod([int(d) for d in shape.split(",") if d]) <= 2 * length for shape in gathered), gathered


def test_rows_are_cut_for_training_and_whole_for_evaluation():
    mesh = mesh_of(2, 1, 1, 4)
    assert batch_sharding(mesh).shard_shape((8, LENGTH)) == (4, LENGTH // 4)
    assert row_sharding(mesh).shard_shape((8, LENGTH)) == (1, LENGTH)


def loss_of(mesh):
    with jax.set_mesh(mesh):
        rows = next(Batches(length=LENGTH))
        count = len(rows["tokens"])
        held, sharding = process_rows(mesh, count), batch_sharding(mesh)
        rows = {k: place_rows(v[list(held)], held, count, sharding, 0) for k, v in rows.items()}
        return float(jax.jit(mean_loss, static_argnums=(3, 4, 5))(initial(mesh), rows, ROPE, CONFIG, 7, mesh))


PROGRAM = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
from tests.training.test_context import loss_of, mesh_of
print(loss_of(mesh_of(1, 1, 1, 4)))
"""


@pytest.mark.slow
def test_a_ring_over_two_processes():
    """A sequence may be longer than one machine can hold."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, port, str(i)],
            env=os.environ | {"PYTHONPATH": os.getcwd()},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    expected = loss_of(mesh_of(1, 1, 1, 1))
    for output in outputs:
        assert float(output.splitlines()[-1]) == pytest.approx(expected, rel=2e-6)  # as above


def test_messages():
    mesh = mesh_of(1, 2, 1, 4)
    check_length(mesh, 24, "config.context.target")
    check_length(mesh_of(1, 2, 1, 1), 7, "config.context.target")
    with pytest.raises(InputError, match=r"config\.context\.target is 28, but config\.mesh\.context = 4 .*of 8"):
        check_length(mesh, 28, "config.context.target")
    with pytest.raises(InputError, match=r"config\.eval\.batch is 4.*data x fsdp x context = 8.*multiple of 8"):
        check_batch(mesh, 4, "config.eval.batch", "rows")
    with pytest.raises(InputError, match=r"'splash', which has no sliding window \(the model's is 7\) with"):
        check_attention(dataclasses.replace(MISTRAL, attention="splash"), mesh)
