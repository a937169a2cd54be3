"""kill -9 at random moments, also within a save: nothing older than the last complete checkpoint is lost."""

import dataclasses
import json
import os
import time

import jax
import numpy as np
import pytest

from rope_jax.sharding import make_mesh
from tests.processes import forked
from tests.training.topology import RUN, fit

# ROPE_JAX_LONG=1 asks for what takes too long at every change.
KILLS = 20 if os.environ.get("ROPE_JAX_LONG") else 6
# Most attempts reach a checkpoint or two, and the run must outlast them all.
LONG = dataclasses.replace(
    RUN,
    optimizer=dataclasses.replace(RUN.optimizer, steps=20 * KILLS),
    global_batch=4,
    accumulation=1,
    checkpoint_every=5,
)


def attempt(folder, progress):
    """Trains in a process of its own until it is killed, saying where it is; in the end, what it has trained."""
    with open(progress, "a", buffering=1, encoding="utf-8") as out:
        mesh = make_mesh(1, 1, 1, jax.devices()[:1])
        _, trained = fit(folder, LONG, mesh, 1, lambda step, metrics: out.write(f"{step} {metrics['loss']!r}\n"))
        out.write(json.dumps(trained) + "\n")


def complete(folder):
    """Step of the newest checkpoint that carries its final name."""
    return max((int(path.name) for path in folder.glob("*") if path.name.isdecimal()), default=0)


def saving(folder):
    return any(folder.glob("*.orbax-checkpoint-tmp*"))


def lines(progress):
    return progress.read_text(encoding="utf-8").split("\n")[:-1] if progress.exists() else []


def wait(child, until):
    while child.is_alive() and not until():
        time.sleep(0.001)


@pytest.mark.slow
def test_killed_at_random_moments_the_run_ends_with_the_same_bits(tmp_path):
    folder, progress = tmp_path / "killed", tmp_path / "progress"
    random = np.random.default_rng(0)
    losses: dict[int, str] = {}
    kept, within_saves = 0, 0
    for kill in range(KILLS + 1):
        with forked(attempt, folder, progress) as child:
            if kill < KILLS:
                steps, pause = random.integers(1, 15), random.uniform(0, 0.05)
                wait(child, lambda steps=steps: len(lines(progress)) >= steps)
                if kill % 2:
                    wait(child, lambda: saving(folder))
                time.sleep(pause)
                child.kill()
            child.join()
            finished = child.exitcode == 0
        written = lines(progress)
        progress.unlink(missing_ok=True)
        if finished:
            break
        within_saves += saving(folder)
        steps = [int(line.split()[0]) for line in written]
        # It resumed from the newest complete checkpoint, and every step gave the loss that it gave before.
        assert not steps or steps[0] == kept + 1
        for line in written:
            step, loss = line.split()
            assert losses.setdefault(int(step), loss) == loss
        kept = complete(folder)
        assert kept >= max([0, *steps]) - 2 * LONG.checkpoint_every
    assert finished
    assert kill == KILLS, "the run ended before it was killed as often as asked"
    assert within_saves >= KILLS // 4
    seen, trained = fit(tmp_path / "whole", LONG, make_mesh(1, 1, 1, jax.devices()[:1]), 1)
    assert json.loads(written[-1]) == trained
    assert {step: float(loss) for step, loss in losses.items()}.items() <= seen.items()
    print(f"{KILLS} kills, {within_saves} of them within a save, {len(losses)} steps seen before the last attempt")
