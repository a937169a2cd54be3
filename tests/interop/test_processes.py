"""Reading and writing with parameters that are spread over several processes."""

import pytest

from tests.interop.references import write_random_llama
from tests.interop.test_round_trip import stored_bytes
from tests.processes import together

PROGRAM = """
import sys
import jax
source, target, port, process = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(process))
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from rope_jax.interop.huggingface import read_model, write_model

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
    together(2, "-c", PROGRAM, folder, tmp_path / "out", JAX_NUM_CPU_DEVICES="2")
    assert stored_bytes(tmp_path / "out") == stored_bytes(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
