"""Time and memory of the solver, against literal loops and plain NumPy in the same run.

python benchmarks/solver.py                 # everything, minutes; the NumPy search alone takes most of them
python benchmarks/solver.py --search=0      # without the continuous search

Every case runs in its own process, so that its first call compiles and peak memory is its own.
"""

import os
import statistics
import sys
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from benchmarks.common import head, in_own_process, machine, options, peak_bytes, row, seconds
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
    parser = options(__doc__)
    parser.add_argument("--search", type=int, default=1, help="0 skips the continuous search")
    arguments = parser.parse_args()
    print(machine(JAX=f"{jax.__version__} ({jax.default_backend()})", NumPy=np.__version__))
    setting = f"base {BASE:g}, head dimension {HEAD_DIM}, from {ORIGINAL} tokens, {INTERVALS} intervals"
    print(f"{setting}, candidates 1 and s\nmedians of {REPEATS} later calls\n")

    loop = ("NumPy loop", "ratio", "torch loop", "ratio")
    head("selection", "angles", "first call", "later calls", *loop, "peak memory")
    later = {}
    for name, target in TARGETS.items():
        loops = in_own_process(run_case, "loops", target, "float32")
        star = "" if target <= WHOLE else " *"
        for arithmetic in ("exact", "rough", "float32"):
            if (arithmetic == "float32" and target > 2**20) or (arithmetic == "rough" and target > ROUGH):
                continue  # tens of seconds per call; above 2^15 tokens "rough" equals "exact"
            case = in_own_process(run_case, "select", target, arithmetic)
            later[name, arithmetic] = case["later"]
            cells = [name, arithmetic, f"{case['first']:.2f} s", f"{1e3 * case['later']:.2f} ms"]
            for time in (loops["numpy"], loops["torch"]):
                cells += [f"{time:.2f} s{star}", f"{time / case['later']:,.0f}"] if time else ["-", "-"]
            row(*cells, f"{case['memory']} MiB")
    growth = later["1M", "exact"] / later["16k", "exact"]
    print("\n* the loops' time at 16k, scaled by the number of angles: they would take minutes to hours")
    print(f"from 16k to 1M the time grows {growth:.1f} times\n")

    if arguments.search:
        ours = ("minimise", "disturbance x 1000", "first call", "later calls")
        head(*ours, "NumPy search", "its x 1000", "ratio", "memory")
        for name in ("8k", "16k"):
            case = in_own_process(run_case, "minimise", TARGETS[name], "float32")
            row(
                *(name, f"{case['value']:.3f}", f"{case['first']:.2f} s", f"{case['later']:.2f} s"),
                *(f"{case['numpy']:.1f} s", f"{case['numpy_value']:.3f}", f"{case['numpy'] / case['later']:.0f}"),
                f"{case['memory']} MiB",
            )


def run_case(kind: str, target: int, arithmetic: str) -> dict:
    """Measures one case: times in seconds, and peak memory in MiB before the reference loops run."""
    exact = exact_frequencies(BASE, HEAD_DIM)
    theta = {"float32": frequencies(BASE, HEAD_DIM), "exact": exact, "rough": exact.roughly()}[arithmetic]
    candidates = np.stack([np.ones(HEAD_DIM // 2), np.full(HEAD_DIM // 2, target / ORIGINAL)]).astype(np.float32)
    arithmetic = "float32" if arithmetic == "float32" else EXACT
    measure = Measure(ORIGINAL, target, intervals=INTERVALS, arithmetic=arithmetic)
    if kind == "loops":
        return literal_loops(candidates, target)
    if kind == "select":
        first, later = timed(lambda: select(theta, candidates, measure))
        return {"first": first, "later": later, "memory": peak_bytes() >> 20}
    first, later = timed(lambda: minimise(theta, measure), repeats=3)
    value = 1e3 * float(minimise(theta, measure).cost.mean())
    found = {"first": first, "later": later, "memory": peak_bytes() >> 20, "value": value}
    disturbance = []
    found["numpy"] = seconds(lambda: disturbance.append(numpy_search(theta, target, Search())))
    return found | {"numpy_value": 1e3 * disturbance[0]}


def select(theta, candidates, measure):
    """The argmin of two candidates."""
    measured = np.asarray(disturbances(theta, candidates, measure))
    return np.where(np.diff(measured, axis=0)[0] < 0, candidates[1], candidates[0])


def timed(call, repeats: int = REPEATS) -> tuple[float, float]:
    """Seconds of the first call, and the median of later ones."""
    first, *later = (seconds(lambda: jax.block_until_ready(call())) for _ in range(repeats + 1))
    return first, statistics.median(later)


def literal_loops(candidates: np.ndarray, target: int) -> dict:
    """Seconds of the equations as they are written: a loop over pairs, candidates and positions, in float32.

    Once over NumPy scalars, and once over the elements of torch tensors, as in the authors' release (None without
    torch).
    """
    timed_at = min(target, WHOLE)
    share = (ORIGINAL + 2 * target) / (ORIGINAL + 2 * timed_at)
    theta = frequencies(BASE, HEAD_DIM)
    extrapolated, interpolated = candidates

    def select_all(histogram):
        for pair in range(HEAD_DIM // 2):
            before = histogram(theta[pair], ORIGINAL)
            costs = [kl(before, histogram(theta[pair] / row[pair], timed_at)) for row in (extrapolated, interpolated)]
            (extrapolated, interpolated)[costs[1] < costs[0]][pair]

    histograms = {"numpy": scalar_histogram} | ({"torch": tensor_histogram} if find_spec("torch") else {})
    return {"torch": None} | {name: share * seconds(select_all, one) for name, one in histograms.items()}


def scalar_histogram(frequency, length):
    full, scale = np.float32(2 * np.pi), np.float32(INTERVALS / (2 * np.pi))
    counts = [0] * INTERVALS
    for m in range(length):
        angle = np.fmod(np.float32(m) * frequency, full)
        counts[min(int(angle * scale), INTERVALS - 1)] += 1
    return np.array(counts)


def tensor_histogram(frequency, length):
    import torch  # here, because it would count as memory of the other cases

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
    """Mean disturbance found on the grids of `minimise` by a plain NumPy loop over pairs and candidates."""
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


if __name__ == "__main__":
    # What is timed below counts the same angles.
    reference = numpy_histogram(frequencies(BASE, HEAD_DIM)[20], np.arange(4096, dtype=np.float32))
    np.testing.assert_array_equal(angle_counts(frequencies(BASE, HEAD_DIM)[20], 4096, INTERVALS), reference)
    main()
