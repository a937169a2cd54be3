"""Figures as plain data. `rope_jax.report.plots` draws them.

Each has the `name` of its file, without the ending, and a `title` above all its panels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from rope_jax.report.styles import titled


@dataclasses.dataclass(frozen=True)
class Line:
    """A method's values `y` at `x`, `[N]` each, with the ends of their 95% confidence intervals, if there are any."""

    method: str
    x: Sequence[float]
    y: Sequence[float]
    interval: tuple[Sequence[float], Sequence[float]] | None = None


@dataclasses.dataclass(frozen=True)
class Panel:
    """The lines of one pair of axes; `log_x` makes the horizontal one logarithmic (base 2)."""

    lines: Sequence[Line]
    x_label: str
    title: str = ""
    log_x: bool = False


@dataclasses.dataclass(frozen=True)
class LinePlot:
    """Panels of lines over one vertical axis, at most three in a row.

    Attributes:
        y_scale: "symlog" starts at 0 and is linear below 1e-3.
        y_limits: ends of the vertical axis; None for automatic ones.
        original: pre-training context in tokens, drawn as a vertical line; None for none.
        kind: "line", "steps" (constant around each x) or "bars" (intervals as error bars, else as bands).
    """

    name: str
    panels: Sequence[Panel]
    y_label: str
    title: str = ""
    y_scale: Literal["linear", "log", "symlog"] = "linear"
    y_limits: tuple[float, float] | None = None
    original: int | None = None
    kind: Literal["line", "steps", "bars"] = "line"


@dataclasses.dataclass(frozen=True)
class HeatMaps:
    """Scores by prompt length and depth.

    Attributes:
        maps: title to `{"lengths": [L] tokens, "depths": [D] in 0 .. 1, "mean": [L][D] percent, None if not measured}`.
        columns: maps in a row.
        hidden: what lies at the depth, such as "key".
    """

    name: str
    title: str
    maps: Mapping[str, Mapping]
    columns: int
    hidden: str


@dataclasses.dataclass(frozen=True)
class Histograms:
    """Angle distributions (arXiv 2410.01490, figures 1, 3 and 6): a row per setting, a column per frequency pair.

    `settings` is setting to pair's name to `[b]` shares of the intervals of `[0, 2 pi)`.
    """

    name: str
    title: str
    settings: Mapping[str, Mapping[str, Sequence[float]]]


Figure = LinePlot | HeatMaps | Histograms


def disturbance_per_pair(
    disturbance: Mapping[str, ArrayLike], title: str = "Disturbance per pair", name: str = "disturbance"
) -> LinePlot:
    """Disturbance of each frequency pair (arXiv 2410.01490, figures 7 and 8), from method to `[D/2]` nats."""
    lines = [_by_pair(*item) for item in disturbance.items()]
    panel = Panel(lines, "frequency pair i (fast to slow)", title)
    # Values span four decades and may be zero.
    return LinePlot(name, [panel], "disturbance D_i (nats)", y_scale="symlog")


def factors_per_pair(factors: Mapping[str, ArrayLike]) -> LinePlot:
    """Scale factor of each pair, from method to `[D/2]`, or to `[layers, D/2]`, whose mean over layers is drawn."""
    lines = [_by_pair(method, np.atleast_2d(values).mean(axis=0)) for method, values in factors.items()]
    panel = Panel(lines, "frequency pair i (fast to slow)", "Scale vector: 1 extrapolates, s interpolates")
    return LinePlot("factors", [panel], "factor f_i", kind="steps")


def gradient_per_pair(gradients: Mapping[str, Mapping]) -> LinePlot:
    """Gradient of the loss in the logarithm of each pair's factor, with 95% bands.

    `gradients` is method to `factors`, `[D/2]` or `[layers, D/2]`, which are summed over layers, and their `interval`.
    """
    lines = [
        dataclasses.replace(_by_pair(method, np.atleast_2d(found["factors"]).sum(axis=0)), interval=found["interval"])
        for method, found in gradients.items()
    ]
    panel = Panel(lines, "frequency pair i (fast to slow)", "Gradient: below 0, a larger factor lowers the loss")
    return LinePlot("gradient", [panel], "d loss / d log f_i (nats per token)")


def training_curves(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> LinePlot:
    """Training loss of each fine-tuning run, from method to rows with `step` and `loss` (nats per token)."""
    lines = [Line(m, [row["step"] for row in rows], [row["loss"] for row in rows]) for m, rows in curves.items()]
    return LinePlot("loss", [Panel(lines, "step", "Fine-tuning at the extended context")], "loss (nats per token)")


def perplexity_by_position(panels: Mapping[str, Mapping[str, Sequence[Mapping]]], original: int) -> LinePlot:
    """Perplexity against position in the window, with 95% bands.

    `panels` is title to method to buckets with `start`, `end`, `perplexity` and `interval`.
    """

    def line(method: str, buckets: Sequence[Mapping]) -> Line:
        return _with_intervals(method, [(b["start"] * b["end"]) ** 0.5 for b in buckets], buckets, "perplexity")

    # Every model predicts the first few tokens of a window poorly; they would flatten the rest.
    buckets = [bucket for curves in panels.values() for curve in curves.values() for bucket in curve]
    first = min(original, max(bucket["end"] for bucket in buckets)) / 16
    shown = [bucket["perplexity"] for bucket in buckets if bucket["start"] >= first]
    return LinePlot(
        "perplexity_by_position",
        [
            Panel([line(*item) for item in curves.items()], "position in the window (tokens)", title, log_x=True)
            for title, curves in panels.items()
        ],
        "perplexity",
        y_scale="log",
        y_limits=(0.85 * min(shown), 1.25 * max(shown)),
        original=original,
    )


def difference_by_position(differences: Mapping[str, Sequence[Mapping]], reference: str, original: int) -> LinePlot:
    """Paired differences in NLL from that of the method `reference` against position, with 95% bands.

    `differences` is method to places with `start`, `end`, `difference` (nats per token) and `interval`.
    """
    lines = []
    for method, places in differences.items():
        # The first few tokens are too few to tell.
        shown = [place for place in places if place["start"] >= original / 16]
        middles = [(place["start"] * place["end"]) ** 0.5 for place in shown]
        lines.append(_with_intervals(method, middles, shown, "difference"))
    panel = Panel(lines, "position in the window (tokens)", f"NLL less that of {titled(reference)}", log_x=True)
    return LinePlot("difference_by_position", [panel], "nats per token", original=original)


def score_by_length(panels: Mapping[str, Mapping[str, Mapping[int, Mapping]]], original: int) -> LinePlot:
    """Scores against length with 95% intervals, a panel per benchmark.

    `panels` is title to method to length in tokens to a cell with `mean` and `interval`, percent.
    """

    drawn = [
        Panel(
            [_with_intervals(method, list(cells), list(cells.values()), "mean") for method, cells in curves.items()],
            "prompt and answer (tokens)",
            title,
            log_x=True,
        )
        for title, curves in panels.items()
    ]
    return LinePlot("score_by_length", drawn, "score (%)", y_limits=(-3, 103), original=original, kind="bars")


def sweep(panels: Mapping[str, Mapping], settings: Mapping[str, int], logarithmic: Sequence[str] = ()) -> LinePlot:
    """Mean disturbance against one setting at a time, while the others have the values in `settings`.

    `panels` is setting to `{"x": [...], "curves": {method: [...]}}`, disturbance times 1000; `logarithmic` are the
    settings with a logarithmic axis.
    """
    title = ", ".join(f"{name} {value:,}" for name, value in settings.items())
    drawn = [
        Panel([Line(m, panel["x"], y) for m, y in panel["curves"].items()], name, log_x=name in logarithmic)
        for name, panel in panels.items()
    ]
    return LinePlot("sweep", drawn, "disturbance x 1000", title, y_scale="log")


def depth_maps(name: str, title: str, grids: Mapping[str, Mapping[str, Mapping]], hidden: str) -> HeatMaps:
    """Scores by length and depth: a row per method and a column per task; for one task, methods side by side.

    `grids` is method to task to a grid of `HeatMaps.maps`.
    """
    tasks = list(dict.fromkeys(task for by_task in grids.values() for task in by_task))
    if len(tasks) == 1:
        maps = {titled(method): by_task[tasks[0]] for method, by_task in grids.items()}
        return HeatMaps(name, title, maps, min(len(maps), 4), hidden)
    maps = {f"{titled(method)}\n{task}": by_task[task] for method, by_task in grids.items() for task in tasks}
    return HeatMaps(name, title, maps, len(tasks), hidden)


def _with_intervals(method: str, x: Sequence[float], cells: Sequence[Mapping], field: str) -> Line:
    """A line through the `field` of cells that may have an `interval`; else the value stands for both ends."""
    values = [cell[field] for cell in cells]
    low, high = zip(*(cell["interval"] or (value, value) for cell, value in zip(cells, values)))
    return Line(method, x, values, (low, high))


def _by_pair(method: str, values: ArrayLike) -> Line:
    numbers = np.asarray(values, float).tolist()
    return Line(method, range(len(numbers)), numbers)
