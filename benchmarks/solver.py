"""Time and memory of the solver, beside literal loops and plain NumPy measured in the same run.

python benchmarks/solver.py                 # everything, minutes; the NumPy search alone takes most of them
python benchmarks/solver.py --search=0      # without the continuous search

Every case runs in a process of its own, so that first calls compile and peak memory is the case's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from rope_jax.rope.angles import angle_counts
from rope_jax.rope.disturbance import disturbances
from rope_jax.rope.embedding import frequencies
from rope_jax.rope.exact.counting import ROUGH
from rope_jax.rope.exact.turns import exact_frequencies
from rope_jax.rope.measure import EXACT, PSEUDO_COUNT, Measure
from rope_jax.rope.minimise import Search, minimise

BASE, HEAD_DIM, ORIGINAL, INTERVALS = 10000.0, 128, 4096, 360
TARGETS = {"8k": 8192, "16k": 16384, "128k": 131072, "1M": 2**20, "10M": 10_000_000}
REPEATS = 15
# The longest target at which the loops are run from end to end.
WHOLE = 16384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--search", type=int, default=1, help="0 leaves out the continuous search")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_case(*arguments.case.split(":"))))
        return

    print(f"{processor()}, {os.cpu_count()} CPUs; load {os.getloadavg()[0]:.1f}; {jax.default_backend()}")
    print(f"Python {platform.python_version()}, JAX {jax.__version__}, NumPy {np.__version__}")
    print(
        f"base {BASE:g}, head dimension {HEAD_DIM}, from {ORIGINAL} tokens, {INTERVALS} intervals, candidates 1 and s"
    )
    print(f"medians of {REPEATS} later calls\n")

    print("| selection | angles | first call | later calls | NumPy loop | ratio | torch loop | ratio | peak memory |")
    print("|---|---|---|---|---|---|---|---|---|")
    later = {}
    for name, target in TARGETS.items():
        loops = spawn(f"loops:{target}:float32")
        star = "" if target <= WHOLE else " *"
        for arithmetic in ("exact", "rough", "float32"):
            if (arithmetic == "float32" and target > 2**20) or (arithmetic == "rough" and target > ROUGH):
                continue  # tens of seconds a call; and beyond 2^15 tokens "rough" is "exact"
            case = spawn(f"select:{target}:{arithmetic}")
            later[name, arithmetic] = case["later"]
            cells = [name, arithmetic, f"{case['first']:.2f} s", f"{1e3 * case['later']:.2f} ms"]
            for seconds in (loops["numpy"], loops["torch"]):
                ratio = seconds and seconds / case["later"]
                cells += [f"{seconds:.2f} s{star}", f"{ratio:,.0f}"] if seconds else ["-", "-"]
            print(f"| {' | '.join(cells)} | {case['memory']} MiB |", flush=True)
    growth = later["1M", "exact"] / later["16k", "exact"]
    print("\n* the loops' time at 16k, scaled up by the number of angles: they would take minutes and hours")
    print(f"16k to 1M takes {growth:.1f} times the time\n")

    if arguments.search:
        print(
            "| minimise | disturbance x 1000 | first call | later calls | NumPy search | its x 1000 | ratio | memory |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for name in ("8k", "16k"):
            case = spawn(f"minimise:{TARGETS[name]}:float32")
            print(
                f"| {name} | {case['value']:.3f} | {case['first']:.2f} s | {case['later']:.2f} s "
                f"| {case['numpy']:.1f} s | {case['numpy_value']:.3f} | {case['numpy'] / case['later']:.0f} "
                f"| {case['memory']} MiB |",
                flush=True,
            )


def spawn(case: str) -> dict:
    """Runs one case in a fresh process."""
    command = [sys.executable, __file__, "--case", case]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def run_case(kind: str, target: str, arithmetic: str) -> dict:
    """Measures one case; times in seconds, memory in MiB at its peak, before the loops it is compared with."""
    target = int(target)
    exact = exact_frequencies(BASE, HEAD_DIM)
    theta = {"float32": frequencies(BASE, HEAD_DIM), "exact": exact, "rough": exact.roughly()}[arithmetic]
    candidates = np.stack([np.ones(HEAD_DIM // 2), np.full(HEAD_DIM // 2, target / ORIGINAL)]).astype(np.float32)
    arithmetic = "float32" if arithmetic == "float32" else EXACT
    measure = Measure(ORIGINAL, target, intervals=INTERVALS, arithmetic=arithmetic)
    if kind == "loops":
        return literal_loops(candidates, target)
    if kind == "select":
        first, later = timed(lambda: select(theta, candidates, measure))
        return {"first": first, "later": later, "memory": peak()}
    first, later = timed(lambda: minimise(theta, measure), repeats=3)
    value = 1e3 * float(minimise(theta, measure).cost.mean())
    memory = peak()
    started = time.perf_counter()
    numpy_value = 1e3 * numpy_search(theta, target, Search())
    return {
        "first": first,
        "later": later,
        "memory": memory,
        "value": value,
        "numpy": time.perf_counter() - started,
        "numpy_value": numpy_value,
    }


def select(theta, candidates, measure):
    """The argmin of two candidates."""
    measured = np.asarray(disturbances(theta, candidates, measure))
    return np.where(np.diff(measured, axis=0)[0] < 0, candidates[1], candidates[0])


def timed(call, repeats: int = REPEATS) -> tuple[float, float]:
    """Seconds of the first call, and the median of later ones."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - started)
    return seconds[0], statistics.median(seconds[1:])


def literal_loops(candidates: np.ndarray, target: int) -> dict:
    """Seconds that the equations take as they are written: a loop over pairs, candidates and positions.

    In float32, as the authors compute: once over NumPy scalars, and once over the elements of torch tensors, as in
    the authors' release (None without torch).
    """
    timed_at = min(target, WHOLE)
    share = (ORIGINAL + 2 * target) / (ORIGINAL + 2 * timed_at)
    theta = frequencies(BASE, HEAD_DIM)
    extrapolated, interpolated = candidates

    def seconds(histogram):
        started = time.perf_counter()
        for pair in range(HEAD_DIM // 2):
            before = histogram(theta[pair], ORIGINAL)
            costs = [kl(before, histogram(theta[pair] / row[pair], timed_at)) for row in (extrapolated, interpolated)]
            (extrapolated, interpolated)[costs[1] < costs[0]][pair]
        return share * (time.perf_counter() - started)

    tensors = find_spec("torch") is not None
    return {"numpy": seconds(scalar_histogram), "torch": seconds(tensor_histogram) if tensors else None}


def scalar_histogram(frequency, length):
    full, scale = np.float32(2 * np.pi), np.float32(INTERVALS / (2 * np.pi))
    counts = [0] * INTERVALS
    for m in range(length):
        angle = np.fmod(np.float32(m) * frequency, full)
        counts[min(int(angle * scale), INTERVALS - 1)] += 1
    return np.array(counts)


def tensor_histogram(frequency, length):
    import torch  # not above: it would count as memory of the other cases

    angles = torch.arange(length) * torch.tensor(frequency) % (2 * torch.pi)
    counts = torch.zeros(INTERVALS)
    for m in range(length):
        interval = torch.floor(INTERVALS / (2 * torch.pi) * angles[m])
        counts[min(int(interval), INTERVALS - 1)] += 1
    return counts.numpy()


def numpy_histogram(frequency, positions):
    angles = np.fmod(positions * frequency, np.float32(2 * np.pi))
    index = np.minimum((angles * np.float32(INTERVALS / (2 * np.pi))).astype(np.int32), INTERVALS - 1)
    return np.bincount(index, minlength=INTERVALS)


def numpy_search(theta, target, search) -> float:
    """The same grids as `minimise`, in a plain NumPy loop over pairs and candidates; the mean disturbance it finds."""
    extension = np.float32(target / ORIGINAL)
    before_positions, positions = (np.arange(n, dtype=np.float32) for n in (ORIGINAL, target))
    fan = np.arange(-search.fan, search.fan + 1, dtype=np.float32) / np.float32(search.fan)
    total = 0.0
    for frequency in theta:
        before = numpy_histogram(frequency, before_positions)
        best, least = np.float32(1), np.inf
        for step in (0.0, *search.steps):
            if step:
                centres = np.array([1, extension, best], np.float32)
                tried = (centres[:, None] * (1 + np.float32(step) * fan)).ravel()
            else:
                tried = np.linspace(1, extension, search.coarse, dtype=np.float32)
            costs = [kl(before, numpy_histogram(frequency / factor, positions)) for factor in tried]
            lowest = int(np.argmin(costs))
            if costs[lowest] < least:
                best, least = tried[lowest], costs[lowest]
        total += least
    return total / len(theta)


def kl(before, after) -> float:
    p, q = (before + PSEUDO_COUNT) / before.sum(), (after + PSEUDO_COUNT) / after.sum()
    return float(np.sum(p * np.log(p / q)))


def peak() -> int:
    """Peak resident memory of this process, MiB; about 350 of it are JAX itself."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    # Compared in NumPy, and checked there, before anything is timed.
    reference = numpy_histogram(frequencies(BASE, HEAD_DIM)[20], np.arange(4096, dtype=np.float32))
    np.testing.assert_array_equal(angle_counts(frequencies(BASE, HEAD_DIM)[20], 4096, INTERVALS), reference)
    main()
