"""Trains a tiny model on real batches, in one process or as one of several; also a command:

python -m tests.training.topology JOBS PORT PROCESS   # of two

JOBS is a JSON list of `{"folder", "steps", "streams", "mesh"}`, run one after the other. Each prints a line with the
losses by step and the fingerprint of the trained parameters. `{"export"}` instead tries an export that fails.
"""

import contextlib
import dataclasses
import errno
import json
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from rope_jax.data.pipeline import training_batches
from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.errors import InputError
from rope_jax.interop.huggingface import write_model
from rope_jax.model.llama import init_params, param_shardings
from rope_jax.rope.embedding import identity
from rope_jax.sharding import make_mesh, process_rows
from rope_jax.training.checkpoints import fingerprint
from rope_jax.training.config import OptimizerConfig, TrainConfig
from rope_jax.training.loop import Callbacks, Start, train
from rope_jax.training.update import Training
from tests.training.model import CONFIG

MODEL = dataclasses.replace(CONFIG, vocab_size=258)
# As in test_loop: a large eps makes the update a smooth function of the gradient.
RUN = TrainConfig(
    OptimizerConfig(learning_rate=1e-2, steps=12, clip_norm=1.0, eps=1e-2),
    length=32,
    global_batch=16,
    accumulation=2,
    loss_chunk=32,
    checkpoint_every=6,
    keep=2,
)
TEXTS = [
    {"id": str(i), "text": " ".join(np.random.default_rng(i).choice(["one", "two", "many"], 20 + 9 * i))}
    for i in range(12)
]


def fit(folder, run=RUN, mesh=None, streams=2, on_step=lambda step, metrics: None, should_stop=lambda: False):
    """Losses by step of this attempt, and the fingerprint of the trained parameters."""
    mesh = mesh or make_mesh(2, 2, 2)
    rows = run.global_batch // run.accumulation
    tokenizer = load_tokenizer("bytes")
    batches = training_batches(TEXTS, tokenizer, rows, run.length, 0, rows=process_rows(mesh, rows), streams=streams)
    losses = {}

    @contextlib.contextmanager
    def report(start):
        def note(step, metrics):
            losses[step] = metrics["loss"]
            on_step(step, metrics)

        yield note

    def initial():
        create = jax.jit(lambda key: nn.unbox(init_params(MODEL, key)), out_shardings=param_shardings(MODEL, mesh))
        return create(jax.random.key(0))

    start, callbacks = Start(identity(8), initial), Callbacks(report, should_stop)
    return losses, fingerprint(train(Training(MODEL, run, mesh), start, batches, Path(folder), callbacks).params)


def failing_export(folder):
    """What is said when the process that writes runs out of disk after the first tensor."""
    mesh = make_mesh(1, 8, 1)
    create = jax.jit(lambda key: nn.unbox(init_params(MODEL, key)), out_shardings=param_shardings(MODEL, mesh))

    def full(done, total):
        raise OSError(errno.ENOSPC, "No space left on device")

    try:
        write_model(folder, MODEL, create(jax.random.key(0)), identity(8), context=16, provenance={}, progress=full)
    except (InputError, OSError) as error:  # told, and met
        return str(error)


def main(jobs, port, process):
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    for job in json.loads(jobs):
        if "export" in job:
            print(json.dumps(["export", failing_export(Path(job["export"]))]), flush=True)
            continue
        run = dataclasses.replace(RUN, optimizer=dataclasses.replace(RUN.optimizer, steps=job["steps"]))
        losses, trained = fit(job["folder"], run, make_mesh(*job["mesh"]), job["streams"])
        print(json.dumps([losses, trained]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
