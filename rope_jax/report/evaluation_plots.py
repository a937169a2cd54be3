"""The pictures of an evaluation's page. Each function writes one PNG from plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from rope_jax.report.plots import NAMES, method_style, new_figure, save_figure

MOST_COLUMNS = 4


def score_by_length(path: Path, panels: Mapping[str, Mapping[str, Mapping]], original: int) -> None:
    """Scores against length with 95% intervals, a panel per benchmark.

    Args:
        path: PNG to write.
        panels: title to method to `{"lengths": [...], "mean": [...], "interval": [[low, high] or None, ...]}`, percent.
        original: pre-training context, tokens, drawn as a line.
    """
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(6.5, 4.6 * columns), 3.6 * rows), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axis, (title, curves) in zip(axes, panels.items()):
        axis.grid(alpha=0.25)
        lengths = sorted({length for curve in curves.values() for length in curve["lengths"]})
        for i, (method, curve) in enumerate(curves.items()):
            # A few percent to the side, so that intervals of equal scores do not hide one another.
            x = np.array(curve["lengths"]) * 1.02 ** (i - (len(curves) - 1) / 2)
            ends = [interval or (mean, mean) for mean, interval in zip(curve["mean"], curve["interval"])]
            errors = np.abs(np.array(curve["mean"])[None] - np.array(ends).T)
            axis.errorbar(x, curve["mean"], yerr=errors, marker="o", markersize=4, capsize=3, **method_style(method))
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axis.xaxis.set_minor_locator(NullLocator())
        # One length would otherwise be stretched over the whole axis.
        axis.set_xlim(min((*lengths, original)) / 1.3, max((*lengths, original)) * 1.3)
        axis.axvline(original, color="black", linestyle=":", linewidth=1)
        axis.set(title=title, xlabel="prompt and answer (tokens)", ylim=(-3, 103))
    for axis in axes[len(panels) :]:
        axis.remove()
    for row in range(rows):
        axes[row * columns].set_ylabel("score (%)")
    axes[0].text(original, 0.99, " trained up to here", transform=axes[0].get_xaxis_transform(), va="top", size=8)
    handles = {
        label: handle for axis in axes[: len(panels)] for handle, label in zip(*axis.get_legend_handles_labels())
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4)
    save_figure(figure, path)


def perplexity_by_position(path: Path, curves: Mapping[str, Sequence[Mapping]], original: int) -> None:
    """Perplexity against position in the window, with 95% bands.

    Args:
        path: PNG to write.
        curves: method to buckets with `start`, `end`, `perplexity` and `interval`.
        original: pre-training context, tokens, drawn as a line.
    """
    figure, (axis,) = new_figure(1)
    shown = []
    for method, buckets in curves.items():
        middle = np.sqrt([bucket["start"] * bucket["end"] for bucket in buckets])
        value = [bucket["perplexity"] for bucket in buckets]
        bands = [bucket["interval"] or [bucket["perplexity"]] * 2 for bucket in buckets]
        axis.plot(middle, value, marker=".", **method_style(method))
        axis.fill_between(middle, *np.transpose(bands), color=method_style(method)["color"], alpha=0.15)
        # The first few tokens of a window are nearly unpredictable for every model; they would flatten the rest.
        shown += [v for bucket, v in zip(buckets, value) if bucket["start"] >= original / 16]
    axis.axvline(original, color="black", linestyle=":", linewidth=1)
    place = {"transform": axis.get_xaxis_transform(), "va": "top", "ha": "right", "size": 8}
    axis.text(original, 0.99, "trained up to here ", **place)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set(xlabel="position in the window (tokens)", ylabel="perplexity", yscale="log")
    axis.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 1.5, 2, 3, 5, 7), numticks=20))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_ylim(0.85 * min(shown), 1.25 * max(shown))
    axis.legend()
    save_figure(figure, path)


def depth_maps(path: Path, title: str, grids: Mapping[str, Mapping[str, Mapping]], question: str) -> None:
    """Heat maps of scores, length by depth: a row per method and a column per task; of one task methods side by side.

    Args:
        path: PNG to write.
        title: of the picture.
        grids: method to task to a grid of `rope_jax.evaluation.depths.depth_grids`.
        question: what lies at that depth, such as "key".
    """
    tasks = list(dict.fromkeys(task for by_task in grids.values() for task in by_task))
    panels = [(method, task) for method in grids for task in tasks]
    columns = len(tasks) if len(tasks) > 1 else min(len(panels), MOST_COLUMNS)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(6.0, 2.6 * columns + 1), 2.9 * rows + 0.6), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel()[len(panels) :]:
        axis.remove()
    axes = axes.ravel()[: len(panels)]
    for number, (axis, (method, task)) in enumerate(zip(axes, panels)):
        grid = grids[method][task]
        mean = np.array(grid["mean"], float).T
        axis.set_facecolor("#e4e4e4")  # where there is no sample
        image = axis.imshow(mean, vmin=0, vmax=100, cmap="RdYlGn", aspect="auto")
        for (y, x), value in np.ndenumerate(mean):
            if not np.isnan(value):
                colour = "black" if 15 < value < 85 else "white"
                axis.text(x, y, f"{value:.0f}", ha="center", va="center", size=7, color=colour)
        axis.set_xticks(range(len(grid["lengths"])), [f"{length:,}" for length in grid["lengths"]], size=8)
        axis.set_yticks(range(len(grid["depths"])), [f"{depth:.0%}" for depth in grid["depths"]], size=8)
        axis.set_title(NAMES[method] if len(tasks) == 1 else f"{NAMES[method]}\n{task}", size=9)
        axis.set_xlabel("tokens", size=9)
        if number % columns == 0:
            axis.set_ylabel(f"depth of the {question}", size=9)
    figure.suptitle(title)
    figure.colorbar(
        image, ax=list(axes), label="score (%)", fraction=0.15 / columns, aspect=25, shrink=min(1, 2 / rows)
    )
    save_figure(figure, path)
