"""Time and peak memory of reading and writing a checkpoint of LLaMA2 7B's shape, beside `cp` of the same files.

    python benchmarks/checkpoint.py
    python benchmarks/checkpoint.py --layers 2 --folder /some/disk

Every case has a process of its own and is timed from its start to its end; files are written to disk and dropped from
the page cache before each. The results are checked byte for byte, and everything is deleted at the end. At full size
it takes 27 GB of disk and 15 GB of memory.
"""

from __future__ import annotations

import argparse
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

import ml_dtypes
import numpy as np

from rope_jax.interop.export_config import describe_export
from rope_jax.interop.huggingface import read_model, write_model
from rope_jax.interop.new_tensor_files import SHARD_BYTES, NewTensor, plan_shards, write_sharded
from rope_jax.interop.rescale import rescale_folder
from rope_jax.interop.tensor_files import find_tensors
from rope_jax.interop.weights import table
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector, identity

LLAMA2_7B = LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128, param_dtype="bfloat16")
CASES = ("cp", "import and export", "zero-shot", "zero-shot, attention factor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=LLAMA2_7B.num_layers, help="of the model")
    parser.add_argument("--width", type=int, default=LLAMA2_7B.hidden_size, help="hidden size, a multiple of 128")
    parser.add_argument("--repeats", type=int, default=1, help="of all cases in turn; medians are shown")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk to measure")
    parser.add_argument("--case", nargs=3, metavar=("CASE", "SOURCE", "TARGET"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        run_case(args.case[0], Path(args.case[1]), Path(args.case[2]))
        return
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
    print(f"{weights / 1e9:.2f} GB of weights in {len(list(source.glob('*.safetensors')))} files\n", flush=True)
    runs: dict[str, list] = {case: [] for case in CASES}
    for _ in range(repeats):
        # `cp` before and after the others: what else goes on in a machine changes in minutes.
        for case in (*CASES, CASES[0]):
            settle(source)
            runs[case].append(timed(case, source, target))
            check(case, source, target)
            shutil.rmtree(target)
            print(f"{case}: {runs[case][-1][0]:.1f} s", file=sys.stderr, flush=True)
    medians = {case: np.median(found, axis=0) for case, found in runs.items()}
    print("| case | seconds | of `cp` | CPU seconds | peak memory, GB | beside the weights, GB |")
    print("|---|---|---|---|---|---|")
    for case, (seconds, busy, peak) in medians.items():
        memory = "" if case == "cp" else f"{peak / 1e9:.2f}"
        beside = f"{(peak - weights) / 1e9:.2f}" if case == "import and export" else ""
        print(f"| {case} | {seconds:.1f} | {seconds / medians['cp'][0]:.2f} | {busy:.1f} | {memory} | {beside} |")


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
    described, _ = describe_export(
        config,
        identity(config.head_dim),
        context=config.context,
        dtype="bfloat16",
        provenance={},
        carried={},
        extra_config={},
    )
    (folder / "config.json").write_text(json.dumps(described))


def settle(source: Path) -> None:
    """Writes everything to disk and drops the source from the page cache, so that every case starts alike."""
    os.sync()
    for file in source.iterdir():
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(case: str, source: Path, target: Path) -> tuple[float, float, int]:
    """Seconds, seconds of all processors together, and peak resident bytes of one case."""
    if case == "cp":
        command = ["cp", "-r", str(source), str(target)]
    else:
        command = [sys.executable, __file__, "--case", case, str(source), str(target)]
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    )
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, busy, int(done.stdout or 0)


def run_case(case: str, source: Path, target: Path) -> None:
    """In a process of its own: one case, then its peak memory on standard output."""
    if case == "import and export":
        model = read_model(source)
        write_model(
            target,
            model.config,
            model.params,
            model.rope,
            context=model.config.context,
            provenance={},
            source=source,
        )
    else:
        factor = 1.0 if case == "zero-shot" else 1.1386
        rope = ScaleVector.create(np.linspace(1, 4, LLAMA2_7B.head_dim // 2), factor)
        rescale_folder(source, target, rope, context=16384, provenance={"method": "benchmark"})
    # The most that was ever resident, pages of mapped files included.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    print(1024 * int(status.split("VmHWM:")[1].split()[0]))


def check(case: str, source: Path, target: Path) -> None:
    """Fails unless the copy holds what it should."""
    if case == "zero-shot, attention factor":
        before, after = find_tensors(source), find_tensors(target)
        for name, tensor in before.items():
            same = np.array_equal(tensor.read().view(np.uint16), after[name].read().view(np.uint16))
            assert same != ("q_proj" in name or "k_proj" in name), name
        return
    for file in source.glob("*.safetensors"):
        assert filecmp.cmp(file, target / file.name, shallow=False), file.name


if __name__ == "__main__":
    main()
