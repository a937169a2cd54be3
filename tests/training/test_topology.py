"""Two processes of four devices, one of eight and a single device train alike, and resume from one another."""

import dataclasses
import json
import shutil

import jax
import pytest

from rope_jax.sharding import make_mesh, process_rows
from tests.processes import together
from tests.training.topology import RUN, fit

MESH = (2, 2, 2)


def in_two_processes(jobs):
    """Runs jobs in two processes of four devices; what each printed, which must be the same."""
    outputs = together(2, "-m", "tests.training.topology", json.dumps(jobs), JAX_NUM_CPU_DEVICES="4")
    printed = [[json.loads(line) for line in out.splitlines() if line.startswith(("[{", '["'))] for out in outputs]
    # An export fails in the process that writes, and the other is told.
    told, failed = (lines.pop()[1] for lines in reversed(printed))
    assert "No space left on device" in failed and told == f"process 0 failed: {failed}"
    assert printed[0] == printed[1]
    return [({int(step): loss for step, loss in losses.items()}, trained) for losses, trained in printed[0]]


def halfway(folder, target):
    """A copy of a run that ended after its sixth step."""
    shutil.copytree(folder, target)
    shutil.rmtree(target / "12")
    return target


def assert_close(losses, expected):
    assert losses.keys() == expected.keys()
    for step, loss in losses.items():
        # float32 sums in another order; twelve updates let that grow a little.
        assert loss == pytest.approx(expected[step], rel=2e-5), step


@pytest.mark.slow
def test_topologies_agree_and_resume_from_one_another(tmp_path):
    one = make_mesh(1, 1, 1, jax.devices()[:1])
    single, _ = fit(tmp_path / "single", mesh=one)
    eight, _ = fit(tmp_path / "eight", mesh=make_mesh(*MESH))
    assert list(single) == list(range(1, 13))
    assert_close(eight, single)
    # Three steps more tell whether a resumed run is the one that was not interrupted.
    resumed = {"steps": 9, "streams": 2, "mesh": MESH}
    whole, from_single, from_eight = in_two_processes(
        [
            {"folder": str(tmp_path / "two"), **resumed, "steps": 12},
            {"folder": str(halfway(tmp_path / "single", tmp_path / "single-two")), **resumed},
            {"folder": str(halfway(tmp_path / "eight", tmp_path / "eight-two")), **resumed},
            {"export": str(tmp_path / "export")},
        ]
    )
    assert not list(tmp_path.glob("*export*"))
    assert_close(whole[0], single)
    second = {step: single[step] for step in (7, 8, 9)}
    assert_close(from_single[0], second)
    assert_close(from_eight[0], second)
    short = dataclasses.replace(RUN, optimizer=dataclasses.replace(RUN.optimizer, steps=9))
    for mesh, name in ((one, "one"), (make_mesh(*MESH), "eight")):
        losses, _ = fit(halfway(tmp_path / "two", tmp_path / f"two-{name}"), short, mesh)
        assert_close(losses, second)


def test_rows_of_a_process():
    # All devices of this process: every row, also where other axes hold copies.
    for sizes in ((8, 1, 1), (2, 2, 2), (1, 1, 8)):
        assert process_rows(make_mesh(*sizes), 16) == tuple(range(16))
    assert process_rows(make_mesh(1, 1, 1, jax.devices()[:1]), 4) == (0, 1, 2, 3)
