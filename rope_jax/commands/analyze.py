"""The command `analyze`: angle distributions and disturbance under every method, without weights."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rope_jax.commands.reporter import Reporter
from rope_jax.files import write_json
from rope_jax.report import figures, plots
from rope_jax.report.styles import titled
from rope_jax.rope.angles import angle_histograms
from rope_jax.rope.distances import DistanceHistogram
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods import METHODS
from rope_jax.rope.methods.dprope import DPRopeArgmin
from rope_jax.rope.methods.method import Method, Solution
from rope_jax.rope.methods.two_term import TwoTerm
from rope_jax.rope.two_term import changed_distances, unseen_angles

# The pairs that the paper's figures show, of LLaMA2's 64: one whose angles every context covers, one resonant.
PAIRS = (6, 22)
MILLION = 2**20


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What is analyzed: `methods` by name, 'pi' among them; `settings` are all config fields, JSON-able.

    `energy` weighs pairs in totals, by layer if it has rows, and `distances` are those of the two terms; None weighs
    all the same.
    """

    name: str
    settings: Mapping[str, Any]
    geometry: Geometry
    measure: Measure
    methods: Mapping[str, Method]
    energy: Sequence | None = None
    distances: DistanceHistogram | None = None


def analyze(analysis: Analysis, folder: Path, reporter: Reporter) -> dict:
    """Solves every method, tabulates its disturbance and draws the paper's figures 1, 3, 6, 7 and 8.

    Writes `analysis.json`, whose content it returns, and `figures/`.
    """
    geometry, measure = analysis.geometry, analysis.measure
    reporter.say(
        f"{analysis.name}: {measure.original:,} to {measure.target:,} tokens, base {geometry.base:g}, head dimension "
        f"{geometry.head_dim}, {measure.intervals} intervals"
    )
    solutions = {name: method(geometry, measure) for name, method in analysis.methods.items()}
    per_pair = {name: two_terms(analysis, solution) for name, solution in solutions.items()}
    disturbances = {name: np.asarray(solution.disturbance, float) for name, solution in solutions.items()}
    shifts = {name: solution.shifts for name, solution in solutions.items()}
    means, changed, unseen = (
        {name: 1e3 * _total(rows, analysis.energy) for name, rows in found.items()}
        for found in (shifts, *({name: terms[n] for name, terms in per_pair.items()} for n in (0, 1)))
    )
    width = max(len(titled(name)) for name in ("own", *solutions))
    weighted = "each pair by its energy" if analysis.energy else "all pairs alike"
    reporter.say(f"times 1000, {weighted}: disturbance, familiar distances that change, angles never seen")
    reporter.say(
        f"  {'method':<{width}} {'disturbance':>11} {'against PI':>11} {'changed':>9} {'unseen':>9} "
        f"{'interpolated':>13}"
    )
    for name, solution in solutions.items():
        reporter.say(
            f"  {titled(name):<{width}} {means[name]:>11.2f} {_against(means[name], means['pi']):>11} "
            f"{changed[name]:>9.1f} {unseen[name]:>9.1f} {solution.interpolated_dimensions:>13}"
        )
    result = {
        "disturbance_e3": means,
        "changed_e3": changed,
        "unseen_e3": unseen,
        "per_pair": {m: pairs.tolist() for m, pairs in disturbances.items()},
        "factors": {m: np.asarray(s.scale.factors, float).tolist() for m, s in solutions.items()},
        "interpolated_dimensions": {m: s.interpolated_dimensions for m, s in solutions.items()},
        "config": analysis.settings,
    }
    write_json(folder / "analysis.json", result)
    draw(folder / "figures", geometry, measure, solutions)
    reporter.say(f"numbers  {folder / 'analysis.json'}\nfigures  {folder / 'figures'}")
    return result


def two_terms(analysis: Analysis, solution: Solution) -> np.ndarray:
    """`[2, rows, D/2]`: how much a solution changes familiar distances, and how far it goes beyond the angles seen.

    A vector per layer has a row for each.

    Example:
        >>> llama2 = Analysis("LLaMA2", {}, Geometry(10000.0, 128, identity(128)), Measure(4096, 8192), {})
        >>> pi = METHODS["pi"]()(llama2.geometry, llama2.measure)
        >>> print(*(f"{1e3 * term.mean():.1f}" for term in two_terms(llama2, pi)))  # changed, unseen
        735.1 0.0
    """
    geometry, measure = analysis.geometry, analysis.measure
    seen, extended = TwoTerm(distances=analysis.distances).weights(measure)
    theta, own = geometry.theta(), np.asarray(geometry.own.factors)
    rows = np.atleast_2d(np.asarray(solution.scale.factors)) / own
    changed = [changed_distances(theta, row, seen) for row in rows]
    return np.asarray((changed, [unseen_angles(theta, row, measure.original, extended) for row in rows]), float)


def _total(rows: np.ndarray, energy: Sequence | None) -> float:
    """The mean over layers and pairs, weighted by energies, which may be those of all layers together."""
    shape = np.broadcast_shapes(np.shape(rows), np.shape(energy or 1))
    weights = None if energy is None else np.broadcast_to(energy, shape)
    return float(np.average(np.broadcast_to(np.asarray(rows, float), shape), weights=weights))


def _against(mean: float, reference: float) -> str:
    """A mean beside a reference: `-44%` or `+31%`, from ten times the reference on `4,419 x`, `-` without one."""
    ratio = mean / reference if reference else math.inf
    return "-" if math.isinf(ratio) else f"{ratio:,.0f} x" if ratio >= 10 else f"{ratio - 1:+.0%}"


def draw(folder: Path, geometry: Geometry, measure: Measure, solutions: Mapping[str, Solution]) -> None:
    at = f"at {measure.target:,} tokens"
    before = {f"pre-training, {measure.original:,} tokens": _shares(geometry, measure)}

    def histograms(name: str, title: str, *methods: str) -> figures.Figure:
        after = {titled(method): _shares(geometry, measure, solutions[method]) for method in methods}
        return figures.Histograms(name, title, before | after)

    def disturbances(name: str, *methods: str) -> figures.Figure:
        curves = {method: solutions[method].disturbance for method in methods}
        return figures.disturbance_per_pair(curves, f"Disturbance per pair {at}", name)

    for figure in (
        histograms("figure_1", f"Rotary angles {at}", "extrapolation", "pi"),
        histograms("figure_3", "Rotary angles in pre-training"),
        histograms("figure_6", f"Rotary angles {at}", "pi", "yarn", "dprope"),
        disturbances("figure_7", "extrapolation", "pi"),
        disturbances("figure_8", "pi", "yarn", "dprope"),
    ):
        plots.save(figure, folder)


def _shares(geometry: Geometry, measure: Measure, solution: Solution | None = None) -> dict[str, list[float]]:
    """Shares of the intervals of two pairs: in pre-training, or at the extended context under a solution."""
    thetas, length = [geometry.theta()], measure.original
    if solution:
        layers, length = np.atleast_2d(np.asarray(solution.scale.factors)), measure.target
        thetas = [geometry.frequencies(factors=row) for row in layers]
    rows = np.mean([angle_histograms(theta, length, measure.intervals) for theta in thetas], axis=0) / length
    pairs = [pair * len(rows) // 64 for pair in PAIRS]
    return {f"pair {pair}": rows[pair].tolist() for pair in pairs}


def sweep(analysis: Analysis, folder: Path, reporter: Reporter) -> dict:
    """Sweeps interpolated dimensions and intervals (the paper's tables 4 to 7), and lengths up to a million tokens.

    Writes `sweep.json` and `figures/sweep.png`.

    Returns:
        Setting to `{"x": [...], "curves": {method: [disturbance x 1000]}}`.
    """
    measure, head_dim = analysis.measure, analysis.geometry.head_dim
    doublings = [measure.original * 2**k for k in range(1, (MILLION // measure.original).bit_length())]
    found = {
        "interpolated dimensions": {
            "x": list(range(2, head_dim + 1, 2)),
            "curves": {"dprope": _by_interpolated_dimensions(analysis)},
        },
        "intervals": _curves(analysis, ("pi", "yarn", "dprope"), "intervals", [90, 180, 360, 720]),
        "extended context": _curves(analysis, ("extrapolation", "pi", "yarn", "dprope_argmin"), "target", doublings),
    }
    settings = {
        "original context": measure.original,
        "extended context": measure.target,
        "intervals": measure.intervals,
    }
    write_json(folder / "sweep.json", found)
    plots.save(figures.sweep(found, settings, logarithmic=("intervals", "extended context")), folder / "figures")
    reporter.say(f"sweep    {folder / 'sweep.json'}")
    return found


def _curves(analysis: Analysis, methods: Sequence[str], field: str, values: list[int]) -> dict:
    """Mean disturbance of methods against one field of the measure."""
    measures = [dataclasses.replace(analysis.measure, **{field: value}) for value in values]
    curves = {
        name: [1e3 * float(np.mean(_method(analysis, name)(analysis.geometry, m).disturbance)) for m in measures]
        for name in methods
    }
    return {"x": values, "curves": curves}


def _method(analysis: Analysis, name: str) -> Method:
    return analysis.methods[name] if name in analysis.methods else METHODS[name]()


def _by_interpolated_dimensions(analysis: Analysis) -> list[float]:
    """Mean disturbance for 2, 4, ... interpolated dimensions. The pairs that gain most are interpolated first."""
    selection = DPRopeArgmin()(analysis.geometry, analysis.measure).selection
    assert selection is not None
    extrapolated, interpolated = np.asarray(selection.disturbance, np.float64)
    gains = np.sort(extrapolated - interpolated)[::-1]
    return (1e3 * (extrapolated.sum() - np.cumsum(gains)) / len(gains)).tolist()
