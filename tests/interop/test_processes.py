"""Reading and writing with parameters that are spread over several processes."""

import os
import socket
import subprocess
import sys

import pytest

from tests.interop.references import write_random_llama
from tests.interop.test_round_trip import stored_bytes

PROGRAM = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from rope_jax.interop.huggingface import read_model, write_model

source, target = sys.argv[3:]
mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
shapes = read_model(source).params
last = lambda leaf: PartitionSpec(*[None] * (leaf.ndim - 1), "x")
model = read_model(source, jax.tree.map(lambda leaf: NamedSharding(mesh, last(leaf)), shapes))
assert not model.params["embedding"].is_fully_addressable
write_model(target, model.config, model.params, model.rope, context=128, provenance={})
"""


@pytest.mark.slow
def test_two_processes_write_what_they_read(tmp_path):
    folder = write_random_llama(tmp_path / "in", hidden_size=64)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, port, str(i), str(folder), str(tmp_path / "out")],
            env=os.environ | {"PYTHONPATH": os.getcwd()},
        )
        for i in range(2)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    assert stored_bytes(tmp_path / "out") == stored_bytes(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
