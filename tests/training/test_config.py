"""Every field that cannot be used is named."""

import dataclasses

import pytest

from rope_jax.errors import InputError
from rope_jax.model.lora import LoraConfig
from rope_jax.sharding import make_mesh
from rope_jax.training.config import OptimizerConfig
from rope_jax.training.learn import LearnConfig
from rope_jax.training.profiling import Profile
from rope_jax.training.update import Training
from tests.training.helpers import CONFIG, RUN, mesh_of

LORA = LoraConfig(rank=3, alpha=6.0, targets=("q", "head"))
BAD = [
    (OptimizerConfig(), "schedule", "linear"),
    *((OptimizerConfig(), "learning_rate", rate) for rate in (0.0, float("inf"), float("nan"))),
    *((OptimizerConfig(), "eps", value) for value in (-1e-8, float("inf"))),
    (OptimizerConfig(), "mu_dtype", "int8"),
    (OptimizerConfig(), "steps", 0),
    (OptimizerConfig(), "warmup_steps", 1001),
    (OptimizerConfig(), "b1", 1.0),
    (OptimizerConfig(), "b2", -0.1),
    (OptimizerConfig(), "weight_decay", -1.0),
    (OptimizerConfig(), "clip_norm", float("nan")),
    (LORA, "rank", 0),
    (LORA, "alpha", 0.0),
    (LORA, "targets", ("q_proj",)),
    (LORA, "targets", ("norm",)),
    (LearnConfig(), "learning_rate", 0.0),
    (LearnConfig(), "loss_chunk", 0),
    *((RUN, field, 0) for field in ("length", "global_batch", "loss_chunk", "checkpoint_every", "keep")),
    (RUN, "accumulation", 0),
    (RUN, "accumulation", 3),
    (RUN, "keep_best", -1),
    (Profile("profile", 2, 5), "first", 0),
    (Profile("profile", 2, 5), "last", 1),
]


@pytest.mark.parametrize(("good", "field", "value"), BAD, ids=lambda value: str(value)[:20])
def test_a_bad_field_is_named(good, field, value):
    with pytest.raises(InputError, match=f"`{field}`") as error:
        dataclasses.replace(good, **{field: value})
    assert error.value.field == field


@pytest.mark.parametrize(
    ("sizes", "context", "model", "run", "field"),
    [
        ((1, 1, 1), 1, {"tie_embeddings": True}, {"lora": LORA}, "targets"),
        ((1, 1, 1), 1, {}, {"lora": dataclasses.replace(LORA, rank=33)}, "rank"),
        ((1, 1, 8), 1, {}, {}, "tensor"),  # of 2 kv_heads
        ((4, 2, 1), 1, {}, {"accumulation": 2}, "global_batch"),  # microbatches of 4 rows over 8 devices
        ((2, 1, 1), 4, {}, {"length": 28}, "length"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(sizes, context, model, run, field):
    model, config = dataclasses.replace(CONFIG, **model), dataclasses.replace(RUN, **run)
    with pytest.raises(InputError, match=f"`{field}`") as error:
        Training(model, config, mesh_of(*sizes, context=context)).check()
    assert error.value.field == field


@pytest.mark.parametrize(
    ("sizes", "field", "said"),
    [
        ((3, 1, 1), "data", "takes 3 devices, but there are 8"),
        ((3, -1, 1), "data", "takes a multiple of 3 devices, but there are 8: choose sizes whose product"),
        ((-1, -1, 1), "fsdp", "at most one of .* may be -1"),
        ((1, 0, 1), "fsdp", "must be positive"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, field, said):
    with pytest.raises(InputError, match=said) as error:
        make_mesh(*sizes)
    assert error.value.field == field


def test_minus_one_takes_the_devices_that_are_left():
    assert make_mesh(2, -1, 2).shape == {"data": 2, "fsdp": 2, "tensor": 2, "context": 1}
