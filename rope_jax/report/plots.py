"""Draws figures with Matplotlib."""

import dataclasses
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from rope_jax.report.figures import Figure, HeatMaps, Histograms, Line, LinePlot, Panel
from rope_jax.report.styles import look, titled

SVG = "http://www.w3.org/2000/svg"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
# Places of a vector graphic that show their values.
MOST_PLACES = 200


def png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file. Equal figures give equal bytes."""
    file = io.BytesIO()
    with matplotlib.rc_context({"savefig.bbox": "tight"}):
        _draw(figure).savefig(file, metadata={"Software": None})  # no version of Matplotlib inside
    return file.getvalue()


def svg(figure: Figure) -> list[str]:
    """A figure as elements for HTML, one per panel or map, without its title.

    Groups of class `values` lie over the marks, and their `<title>` has the numbers. Ids are unique among figures of
    other names.
    """
    return [_svg(piece, f"{figure.name} {i}") for i, piece in enumerate(_pieces(dataclasses.replace(figure, title="")))]


def _pieces(figure: Figure) -> list[Figure]:
    match figure:
        case LinePlot():
            return [dataclasses.replace(figure, panels=[panel]) for panel in figure.panels]
        case HeatMaps():
            return [dataclasses.replace(figure, maps={t: m}, columns=1) for t, m in figure.maps.items()]
    return [figure]


def _svg(figure: Figure, salt: str) -> str:
    file, titles = io.BytesIO(), {}
    with matplotlib.rc_context({"savefig.bbox": "tight", "svg.fonttype": "none", "svg.hashsalt": salt}):
        canvas = _draw(figure)
        if not isinstance(figure, Histograms):
            canvas.set_figwidth(5.2)  # as wide as a phone
            for place, text in _places(canvas.axes[0], figure):
                place.set(gid=f"values {len(titles)}", facecolor="none", edgecolor="none", zorder=9, in_layout=False)
                titles[place.get_gid()] = text
                canvas.axes[0].add_artist(place)
        canvas.savefig(file, format="svg")
    root = ElementTree.fromstring(file.getvalue())
    root.attrib |= {"role": "img", "aria-label": figure.name.replace("_", " ")}
    for metadata in root.findall(f"{{{SVG}}}metadata"):
        root.remove(metadata)
    for group in root.iter(f"{{{SVG}}}g"):
        if text := titles.get(group.attrib.pop("id", "")):
            group.set("class", "values")
            title = ElementTree.Element(f"{{{SVG}}}title")
            title.text = text
            group.insert(0, title)
    return ElementTree.tostring(root, encoding="unicode")


def _places(axes: Axes, figure: LinePlot | HeatMaps) -> Iterator[tuple[Rectangle, str]]:
    """Areas of the axes of one panel or map, and the numbers of each."""
    if isinstance(figure, LinePlot):
        yield from _columns(axes, figure.panels[0])
        return
    (scored,) = figure.maps.values()
    for (x, y), score in np.ndenumerate(np.array(scored["mean"], float)):
        if not np.isnan(score):
            where = f"{scored['lengths'][x]:,} tokens, {figure.hidden} at {scored['depths'][y]:.0%}"
            yield Rectangle((x - 0.5, y - 0.5), 1, 1), f"{where}: {score:.3g}%"


def _columns(axes: Axes, panel: Panel) -> Iterator[tuple[Rectangle, str]]:
    """A column around each x, with the values of all lines."""
    at: dict[float, list[str]] = {}
    for line in panel.lines:
        for i, (x, y) in enumerate(zip(line.x, line.y)):
            low, high = line.interval or (line.y, line.y)
            ends = f" ({low[i]:.4g} to {high[i]:.4g})" if low[i] != high[i] else ""
            at.setdefault(x, []).append(f"{titled(line.method)}: {y:.4g}{ends}")
    places = sorted(at)[:: -(-len(at) // MOST_PLACES) or 1]
    left, right = axes.get_xlim()
    edges = [left, *((a + b) / 2 for a, b in itertools.pairwise(places)), right]
    for x, (start, end) in zip(places, itertools.pairwise(edges)):
        column = Rectangle((start, 0), end - start, 1, transform=axes.get_xaxis_transform())
        yield column, "\n".join([f"{panel.x_label}: {x:,.6g}", *at[x]])


def save(figure: Figure, folder: Path) -> Path:
    """Writes a figure as `folder/name.png`, and returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{figure.name}.png"
    path.write_bytes(png(figure))
    return path


def _draw(figure: Figure) -> Canvas:
    match figure:
        case LinePlot():
            return _draw_lines(figure)
        case HeatMaps():
            return _draw_maps(figure)
    return _draw_histograms(figure)


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
        single = len(figure.panels) == 1
        canvas.legend(labels.values(), labels, loc="outside lower center", ncols=2 if single else 4)
        canvas.set_figheight(size[1] + single * 0.11 * len(labels))
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
        edges = (np.arange(size + 1) - 0.5 for size in reversed(scores.shape))
        axes.pcolormesh(*edges, scores, cmap="RdYlGn", vmin=0, vmax=100)  # cells, where imshow has a picture
        axes.invert_yaxis()
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
