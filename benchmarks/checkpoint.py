"""Time and peak memory of reading and writing a checkpoint of LLaMA2 7B's shape, against `cp` of the same files.

    python benchmarks/checkpoint.py
    python benchmarks/checkpoint.py --layers 2 --folder /some/disk

Every case runs in its own process and is timed from start to end. Before each, files are written to disk and dropped
from the page cache. Results are checked byte for byte, and everything is deleted at the end. The full size takes 27 GB
of disk and 15 GB of memory.
"""

import dataclasses
import filecmp
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import ml_dtypes
import numpy as np

from benchmarks.common import head, in_own_process, machine, options, peak_bytes, row
from rope_jax.interop.export_config import describe_export
from rope_jax.interop.huggingface import read_model, write_model
from rope_jax.interop.new_folder import rescale_folder
from rope_jax.interop.new_tensor_files import SHARD_BYTES, NewTensor, plan_shards, write_sharded
from rope_jax.interop.tensor_files import find_tensors
from rope_jax.interop.weights import table
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector, identity

LLAMA2_7B = LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128, param_dtype="bfloat16")
CASES = ("cp", "import and export", "zero-shot")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--layers", type=int, default=LLAMA2_7B.num_layers, help="of the model")
    parser.add_argument("--width", type=int, default=LLAMA2_7B.hidden_size, help="hidden size, a multiple of 128")
    parser.add_argument("--repeats", type=int, default=1, help="of all cases in turn; medians are shown")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk to measure")
    args = parser.parse_args()
    shape = dataclasses.replace(
        LLAMA2_7B,
        num_layers=args.layers,
        hidden_size=args.width,
        intermediate_size=LLAMA2_7B.intermediate_size * args.width // LLAMA2_7B.hidden_size,
        num_heads=args.width // 128,
        num_kv_heads=args.width // 128,
    )
    with tempfile.TemporaryDirectory(prefix="checkpoint-benchmark-", dir=args.folder) as place:
        measure(shape, args.repeats, Path(place))


def measure(config: LlamaConfig, repeats: int, place: Path) -> None:
    """Generates the checkpoint, measures every case and prints a table of medians."""
    source, target = place / "source", place / "target"
    generate(config, source)
    weights = sum(tensor.bytes for tensor in find_tensors(source).values())
    print(machine())
    print(f"{weights / 1e9:.2f} GB of weights in {len(list(source.glob('*.safetensors')))} files\n", flush=True)
    runs: dict[str, list] = {case: [] for case in CASES}
    for _ in range(repeats):
        # `cp` before and after the others: the load of a machine changes within minutes.
        for case in (*CASES, CASES[0]):
            settle(source)
            runs[case].append(timed(case, source, target))
            check(source, target)
            shutil.rmtree(target)
            print(f"{case}: {runs[case][-1][0]:.1f} s", file=sys.stderr, flush=True)
    medians = {case: np.median(found, axis=0) for case, found in runs.items()}
    head("case", "seconds", "of `cp`", "CPU seconds", "peak memory, GB", "beside the weights, GB")
    for case, (seconds, busy, peak) in medians.items():
        memory = "" if case == "cp" else f"{peak / 1e9:.2f}"
        beside = f"{(peak - weights) / 1e9:.2f}" if case == "import and export" else ""
        row(case, f"{seconds:.1f}", f"{seconds / medians['cp'][0]:.2f}", f"{busy:.1f}", memory, beside)


def generate(config: LlamaConfig, folder: Path) -> None:
    """Writes random weights of both signs between 2^-7 and 2^-5, one tensor in memory at a time."""
    dtype = np.dtype(ml_dtypes.bfloat16)
    rows = [(w, i, name) for w in table(config) for i, name in enumerate(w.names(config))]
    rows.sort(key=lambda row: row[1] if row[0].stacked else -1)
    tensors = [NewTensor(name, dtype, weight.stored_shape(config)) for weight, _, name in rows]
    random = np.random.Generator(np.random.SFC64(0))

    def values():
        for tensor in tensors:
            bits = random.integers(0, 2**16, math.prod(tensor.shape), np.uint16, endpoint=False)
            yield ((bits & 0x80FF) | 0x3C00).view(dtype).reshape(tensor.shape)

    folder.mkdir()
    write_sharded(folder, plan_shards(tensors, SHARD_BYTES), values(), lambda _: None)
    fields = {"context": config.context, "dtype": "bfloat16", "provenance": {}}
    described = describe_export(config, identity(config.head_dim), **fields)
    (folder / "config.json").write_text(json.dumps(described))


def settle(source: Path) -> None:
    """Writes everything to disk and drops the source from the page cache, so that every case starts cold."""
    os.sync()
    for file in source.iterdir():
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(case: str, source: Path, target: Path) -> tuple[float, float, int]:
    """Seconds, seconds of all processors together, and peak resident bytes of one case."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    if case == "cp":
        subprocess.run(["cp", "-r", source, target], check=True)
    peak = 0 if case == "cp" else in_own_process(run_case, case, source, target)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, busy, peak


def run_case(case: str, source: Path, target: Path) -> int:
    """Runs one case in this process and returns its peak memory."""
    if case == "import and export":
        model = read_model(source)
        config, context = model.config, model.config.context
        write_model(target, config, model.params, model.rope, context=context, provenance={}, source=source)
    else:
        rope = ScaleVector.create(np.linspace(1, 4, LLAMA2_7B.head_dim // 2), 1.1386)
        rescale_folder(source, target, rope, context=16384, provenance={"method": "benchmark"})
    return peak_bytes()


def check(source: Path, target: Path) -> None:
    """Fails unless the copy holds the same bytes."""
    for file in source.glob("*.safetensors"):
        assert filecmp.cmp(file, target / file.name, shallow=False), file.name


if __name__ == "__main__":
    main()
