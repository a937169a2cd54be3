"""Draws figures with Matplotlib."""

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from rope_jax.report.figures import Figure, HeatMaps, Histograms, Line, LinePlot
from rope_jax.report.styles import look, titled


def png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file. Equal figures give equal bytes."""
    draw = {LinePlot: _draw_lines, HeatMaps: _draw_maps, Histograms: _draw_histograms}[type(figure)]
    file = io.BytesIO()
    with matplotlib.rc_context({"savefig.bbox": "tight"}):
        draw(figure).savefig(file, metadata={"Software": None})  # no version of Matplotlib inside
    return file.getvalue()


def save(figure: Figure, folder: Path) -> Path:
    """Writes a figure as `folder/name.png`, and returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{figure.name}.png"
    path.write_bytes(png(figure))
    return path


def _draw_lines(figure: LinePlot) -> Canvas:
    columns = min(len(figure.panels), 3)
    rows = -(-len(figure.panels) // columns)
    size = max(6.5, (5.5 if columns < 3 else 4.8) * columns), 4.0 if rows == 1 else 3.6 * rows
    canvas, grid, used = _grid(size, (rows, columns), len(figure.panels), figure.title, sharey=True)
    for axes, panel in zip(used, figure.panels):
        axes.grid(alpha=0.25)
        for i, line in enumerate(panel.lines):
            # Error bars move a few percent aside, so that equal scores do not hide one another.
            _draw_line(axes, line, figure.kind, 1.02 ** (i - (len(panel.lines) - 1) / 2))
        axes.set(xlabel=panel.x_label, title=panel.title)
        if panel.log_x:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tokens(value)))
            places = sorted({x for line in panel.lines for x in line.x})
            if len(places) <= 12:
                axes.set_xticks(places)
                axes.xaxis.set_minor_locator(NullLocator())
            if figure.kind == "bars":
                ends = (*places, figure.original or places[0])
                axes.set_xlim(min(ends) / 1.3, max(ends) * 1.3)  # one length alone would fill the axis
        if figure.original:
            _mark_original(axes, figure.original)
        _scale_y(axes, figure)
    for axes in grid[:, 0]:
        axes.set_ylabel(figure.y_label)
    if len(figure.panels) == 1 and len(figure.panels[0].lines) <= 6:
        grid[0, 0].legend()
    else:
        labels = {name: h for axes in used for h, name in zip(*axes.get_legend_handles_labels())}
        canvas.legend(labels.values(), labels, loc="outside lower center", ncols=4)
    return canvas


def _grid(
    size: tuple[float, float], shape: tuple[int, int], count: int, title: str, **shared: Any
) -> tuple[Canvas, np.ndarray, list[Axes]]:
    """A titled canvas, its grid of axes, and the first `count` of them; the others are removed."""
    canvas = Canvas(figsize=size, dpi=120, layout="constrained")
    grid = canvas.subplots(*shape, squeeze=False, **shared)
    for axes in grid.ravel()[count:]:
        axes.remove()
    if title:
        canvas.suptitle(title)
    return canvas, grid, list(grid.ravel()[:count])


def _draw_line(axes: Axes, line: Line, kind: str, shift: float) -> None:
    # DPRoPE lies on top where methods agree.
    style: dict[str, Any] = {"label": titled(line.method), **look(line.method)}
    style |= {"linewidth": 2, "zorder": 3} if "dprope" in line.method else {"linewidth": 1.3, "zorder": 2}
    if kind == "bars":
        errors = np.abs(np.asarray(line.interval) - np.asarray(line.y))
        axes.errorbar(np.multiply(line.x, shift), line.y, yerr=errors, marker="o", markersize=4, capsize=3, **style)
        return
    marker = "." if len(line.x) < 200 else ""
    axes.plot(line.x, line.y, marker=marker, drawstyle="steps-mid" if kind == "steps" else "default", **style)
    if line.interval is not None:
        axes.fill_between(line.x, *line.interval, color=style["color"], alpha=0.15)


def _scale_y(axes: Axes, figure: LinePlot) -> None:
    if figure.y_scale == "symlog":
        axes.set_yscale("symlog", linthresh=1e-3)
        axes.set_ylim(bottom=0)
    elif figure.y_scale == "log":
        axes.set_yscale("log")
        low, high = figure.y_limits or axes.get_ylim()
        subs = (1, 1.5, 2, 3, 5, 7) if high / low < 30 else (1, 3)
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=20))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    if figure.y_limits is not None:
        axes.set_ylim(*figure.y_limits)


def _mark_original(axes: Axes, original: int) -> None:
    axes.axvline(original, color="black", linestyle=":", linewidth=1)
    # Towards the wider side, so that the text stays within the axes.
    left, right = axes.get_xlim()
    to_left = original**2 > left * right
    text, side = ("trained up to here ", "right") if to_left else (" trained up to here", "left")
    axes.text(original, 0.99, text, ha=side, va="top", size=8, transform=axes.get_xaxis_transform())


def _draw_maps(figure: HeatMaps) -> Canvas:
    columns, rows = figure.columns, -(-len(figure.maps) // figure.columns)
    size = max(6.0, 2.6 * columns + 1), 2.9 * rows + 0.6
    canvas, grid, shown = _grid(size, (rows, columns), len(figure.maps), figure.title)
    for axes, (title, scored) in zip(shown, figure.maps.items()):
        scores = np.array(scored["mean"], float).T
        axes.set_facecolor("#e4e4e4")  # nothing measured
        axes.imshow(scores, cmap="RdYlGn", vmin=0, vmax=100, aspect="auto")
        for (y, x), score in np.ndenumerate(scores):
            if not np.isnan(score):
                colour = "black" if 15 < score < 85 else "white"
                axes.text(x, y, f"{score:.0f}", ha="center", va="center", size=7, color=colour)
        axes.set_xticks(range(scores.shape[1]), map(_tokens, scored["lengths"]), size=8)
        axes.set_yticks(range(scores.shape[0]), map("{:.0%}".format, scored["depths"]), size=8)
        axes.set_title(title, size=9)
        axes.set_xlabel("prompt (tokens)", size=9)
    for axes in grid[:, 0]:
        axes.set_ylabel(f"depth of the {figure.hidden}", size=9)
    colours = ScalarMappable(Normalize(0, 100), "RdYlGn")
    canvas.colorbar(colours, ax=shown, label="score (%)", fraction=0.15 / columns, aspect=25, shrink=min(1, 2 / rows))
    return canvas


def _draw_histograms(figure: Histograms) -> Canvas:
    rows, columns = len(figure.settings), len(next(iter(figure.settings.values())))
    size = 5.5 * columns, 0.8 + 1.5 * rows
    canvas, grid, _ = _grid(size, (rows, columns), rows * columns, figure.title, sharex=True, sharey="col")
    for row, (setting, curves) in zip(grid, figure.settings.items()):
        for axes, (pair, shares) in zip(row, curves.items()):
            axes.stairs(np.asarray(shares) * 100, np.linspace(0, 360, len(shares) + 1), fill=True)
            axes.set_title(f"{pair}, {setting}", fontsize=9)
            axes.set_xticks(range(0, 361, 60))
            axes.set_xlim(0, 360)
    for axes in grid[-1]:
        axes.set_xlabel("rotary angle (degrees)")
    canvas.supylabel("share of positions per interval (%)", fontsize=10)
    return canvas


def _tokens(number: float) -> str:
    """A count as `512`, `1,500`, `8k` (8,192) or `1M` (1,048,576)."""
    for unit, name in ((2**20, "M"), (2**10, "k")):
        if number >= unit and number % unit == 0:
            return f"{number / unit:g}{name}"
    return f"{number:,.0f}" if number >= 1 else f"{number:g}"
