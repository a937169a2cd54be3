"""A small model, a data iterator whose state is one number, and a training run of both."""

import contextlib
import dataclasses

import flax.linen as nn
import jax
import numpy as np

from rope_jax.model.llama import init_params, param_shardings
from rope_jax.rope.embedding import ScaleVector
from rope_jax.sharding import make_mesh
from rope_jax.training.config import OptimizerConfig, TrainConfig
from rope_jax.training.loop import Callbacks, Start, train
from rope_jax.training.state import Variables
from rope_jax.training.step import summed_loss
from rope_jax.training.update import Training
from tests.training.model import CONFIG

ROPE = ScaleVector.create(np.linspace(1.0, 2.0, 4))
# Adam's first updates are the sign of the gradient, which rounding flips where a gradient is nearly zero; a large
# eps makes the update a smooth function of the gradient, so that equal sums give equal parameters.
RUN = TrainConfig(
    OptimizerConfig(learning_rate=1e-2, steps=6, clip_norm=1.0, weight_decay=0.1, eps=1e-2),
    length=24,
    global_batch=8,
    loss_chunk=10,
    checkpoint_every=2,
)


class Batches:
    """Packed rows of two documents each, a function of the batch's number only."""

    def __init__(self, rows: int = 8, length: int = 24, vocab: int = 64, same: bool = False):
        self.rows, self.length, self.vocab, self.number = rows, length, vocab, 0
        self.same = same

    def __next__(self):
        generator = np.random.default_rng(0 if self.same else self.number)
        self.number += 1
        tokens = generator.integers(0, self.vocab, (self.rows, self.length), dtype=np.int32)
        cut = generator.integers(1, self.length, (self.rows, 1))
        index = np.arange(self.length)[None]
        segment_ids = np.where(index < cut, 1, 2).astype(np.int32)
        positions = np.where(index < cut, index, index - cut).astype(np.int32)
        return {"tokens": tokens, "segment_ids": segment_ids, "positions": positions}

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


class Interrupted(Exception):
    """Raised by `fit` after the step it was told to stop at."""


def mesh_of(*sizes, context=1):
    """A mesh of as many devices as its sizes take."""
    return make_mesh(*sizes, jax.devices()[: int(np.prod(sizes)) * context], context=context)


ONE = mesh_of(1, 1, 1)


def initial(mesh=ONE, model=CONFIG, seed=0):
    """Sharded parameters of a fresh model."""
    return jax.device_put(nn.unbox(init_params(model, jax.random.key(seed))), param_shardings(model, mesh))


def loss_of(config=RUN, model=CONFIG, mesh=ONE, rope=ROPE, params=None):
    """The loss for `train_step`; `params` are frozen ones."""
    return Training(model, config, mesh).loss(Variables(params, rope))


def mean_loss(variables, rows, model, chunk, mesh=None):
    """Nats per predicted token of one microbatch."""
    nll, count = summed_loss(variables, rows, model, chunk, mesh)
    return nll / count


def steps(config, count, **optimizer):
    """The configuration with another number of steps."""
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, steps=count, **optimizer))


@dataclasses.dataclass
class Fit:
    """What a call of `fit` reported."""

    model: Variables | None = None
    start: int | None = None
    steps: list = dataclasses.field(default_factory=list)
    metrics: list = dataclasses.field(default_factory=list)

    @property
    def losses(self):
        return [metrics["loss"] for metrics in self.metrics]


def fit(
    folder,
    config=RUN,
    mesh=ONE,
    *,
    model=CONFIG,
    rope=ROPE,
    load=None,
    batches=None,
    seed=0,
    stop_at=None,
    should_stop=None,
):
    """Trains and tells what was reported; `stop_at` ends it as if it crashed after that step was reported."""
    seen = Fit()

    @contextlib.contextmanager
    def report(start):
        seen.start = start

        def on_step(step, metrics):
            seen.steps.append(step)
            seen.metrics.append(metrics)
            if step == stop_at:
                raise Interrupted

        yield on_step

    callbacks = Callbacks(report, (lambda: should_stop(seen)) if should_stop else lambda: False)
    batches = batches or Batches(config.rows, config.length)
    start = Start(rope, load or (lambda: initial(mesh, model, seed)))
    with contextlib.suppress(Interrupted):
        seen.model = train(Training(model, config, mesh), start, batches, folder, callbacks)
    return seen


def identical(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
