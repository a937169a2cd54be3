"""Training with sequences cut over devices is training on one device."""

import dataclasses
import re
from functools import cache, partial

import jax
import numpy as np
import optax
import pytest

from rope_jax.errors import InputError
from rope_jax.sharding import batch_sharding, check_batch, place_rows, process_rows, row_sharding
from rope_jax.training.config import OptimizerConfig, TrainConfig
from rope_jax.training.context import check_attention, check_length
from rope_jax.training.learn import LearnConfig, learn
from rope_jax.training.state import Variables, create_state
from rope_jax.training.step import train_step
from rope_jax.training.update import Training
from tests.processes import together
from tests.training import helpers
from tests.training.helpers import CONFIG, ROPE, Batches, fit, initial, mean_loss

LENGTH = 32
RUN = TrainConfig(
    # As in helpers.py, a large eps makes an update a smooth function of the gradient.
    OptimizerConfig(learning_rate=1e-2, steps=4, clip_norm=1.0, weight_decay=0.1, eps=1e-2),
    length=LENGTH,
    global_batch=8,
    loss_chunk=7,
    checkpoint_every=2,
)
MISTRAL = dataclasses.replace(CONFIG, architecture="mistral", sliding_window=7)
REMAT = dataclasses.replace(CONFIG, remat="full")


def mesh_of(data, fsdp, tensor, context):
    return helpers.mesh_of(data, fsdp, tensor, context=context)


def one_step(mesh, config, accumulation=1):
    """Metrics and the negative of the gradients of one step; rows hold two documents each, cut anywhere."""
    optimizer = optax.sgd(1.0)
    rows = {k: v.reshape(accumulation, -1, LENGTH) for k, v in next(Batches(length=LENGTH)).items()}
    with jax.set_mesh(mesh):
        rows = jax.device_put(rows, batch_sharding(mesh, leading=1))
        state = create_state(initial(mesh, config), optimizer)
        loss = Training(config, RUN, mesh).loss(Variables(None, ROPE))
        after, metrics = jax.jit(partial(train_step, loss=loss, optimizer=optimizer))(state, rows)
        updates = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), after.params, state.params)
        return jax.device_get(metrics), updates


@cache
def one_device(config):
    return one_step(mesh_of(1, 1, 1, 1), config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "config", "accumulation"),
    [
        pytest.param((2, 2, 2, 1), REMAT, 1, id="llama on data=2,fsdp=2,tensor=2"),
        pytest.param((2, 1, 1, 4), REMAT, 2, id="llama on data=2,context=4"),
        pytest.param((1, 2, 2, 2), MISTRAL, 1, id="mistral on fsdp=2,tensor=2,context=2"),
    ],
)
def test_a_step_over_cut_sequences_equals_that_of_one_device(sizes, config, accumulation):
    expected, gradients = one_device(config)
    found, ours = one_step(mesh_of(*sizes), config, accumulation)
    assert found["tokens"] == expected["tokens"]
    # Sums of some hundred float32 terms in another order.
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=2e-6)
    np.testing.assert_allclose(found["grad_norm"], expected["grad_norm"], rtol=1e-5)
    # Gradients here are of order 1e-2; read off an update of weights of order 1, they carry rounding of 6e-8.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, gradients)


@pytest.mark.slow
def test_a_run_over_cut_sequences_equals_that_of_one_device(tmp_path):
    alone, cut = mesh_of(1, 1, 1, 1), mesh_of(2, 1, 1, 4)
    one, four = fit(tmp_path / "one", RUN, alone), fit(tmp_path / "four", RUN, cut)
    # As in test_loop.py: the same sums in another order, grown a little by some updates of Adam.
    np.testing.assert_allclose(four.losses, one.losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), four.model, one.model)

    # A checkpoint is resumed over another cut: two steps here, two there.
    fit(tmp_path / "both", RUN, cut, stop_at=3)
    both = fit(tmp_path / "both", RUN, alone)
    assert both.start == 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), both.model, one.model)


@pytest.mark.slow
def test_factors_are_learned_over_cut_sequences():
    found = {}
    for name, mesh in (("one", mesh_of(1, 1, 1, 1)), ("eight", mesh_of(2, 1, 1, 4))):
        with jax.set_mesh(mesh):
            rows = [jax.device_put(next(Batches(length=LENGTH)), batch_sharding(mesh))] * 2
            found[name] = learn(Variables(initial(mesh), ROPE), CONFIG, rows, LearnConfig(loss_chunk=6), mesh)
    (eight, eight_losses, _), (one, one_losses, _) = found["eight"], found["one"]
    np.testing.assert_allclose(eight_losses, one_losses, rtol=2e-6)
    # Adam's first updates are near the gradient's sign: not of the gradients' own precision.
    np.testing.assert_allclose(eight.factors, one.factors, rtol=1e-4)


def compiled(mesh, model, length, chunk):
    config = dataclasses.replace(RUN, length=length, global_batch=2, loss_chunk=chunk)
    return Training(model, config, mesh).trace(ROPE).lower().compile()


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
        return float(
            jax.jit(mean_loss, static_argnums=(2, 3, 4))(Variables(initial(mesh), ROPE), rows, CONFIG, 7, mesh)
        )


PROGRAM = """
import sys
import jax
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
from tests.training.test_context import loss_of, mesh_of
print(loss_of(mesh_of(1, 1, 1, 4)))
"""


@pytest.mark.slow
def test_a_ring_over_two_processes():
    """A sequence may be longer than one machine can hold."""
    outputs = together(2, "-c", PROGRAM, JAX_NUM_CPU_DEVICES="2")
    expected = loss_of(mesh_of(1, 1, 1, 1))
    for output in outputs:
        assert float(output.splitlines()[-1]) == pytest.approx(expected, rel=2e-6)  # as above


def test_what_does_not_divide_over_the_mesh_is_refused():
    mesh = mesh_of(1, 2, 1, 4)
    check_length(mesh, 24)
    check_length(mesh_of(1, 2, 1, 1), 7)
    with pytest.raises(InputError, match="multiple of 8") as error:
        check_length(mesh, 28)
    assert error.value.field == "length"
    with pytest.raises(InputError, match=r"data x fsdp x context = 8.*multiple of 8") as error:
        check_batch(mesh, 4, "batch", "rows")
    assert error.value.field == "batch"
    with pytest.raises(InputError, match=r"`attention` is 'splash', which has no sliding window"):
        check_attention(dataclasses.replace(MISTRAL, attention="splash"), mesh)
