"""The paper's pictures of angles (arXiv 2410.01490, figures 1, 3 and 6), and of sweeps over settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from rope_jax.report.plots import method_style, new_figure, save_figure


def angle_histograms(path: Path, settings: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> None:
    """Angle distributions: a row per setting, a column per frequency pair, one scale per column.

    Args:
        path: PNG to write.
        settings: setting to pair's name to `[b]` shares of the intervals of `[0, 2 pi)`.
        title: of the whole picture.
    """
    columns = list(next(iter(settings.values())))
    figure = Figure(figsize=(5.5 * len(columns), 0.8 + 1.5 * len(settings)), dpi=120, layout="constrained")
    grid = figure.subplots(len(settings), len(columns), sharex=True, sharey="col", squeeze=False)
    for row, (setting, curves) in zip(grid, settings.items()):
        for axis, (pair, shares) in zip(row, curves.items()):
            edges = np.linspace(0, 360, len(shares) + 1)
            axis.stairs(np.asarray(shares) * 100, edges, fill=True)
            axis.set_title(f"{pair}, {setting}", fontsize=9)
            axis.set_xticks(range(0, 361, 60))
            axis.set_xlim(0, 360)
    for axis in grid[-1]:
        axis.set_xlabel("rotary angle (degrees)")
    figure.supylabel("share of positions per interval (%)", fontsize=10)
    figure.suptitle(title)
    save_figure(figure, path)


def sweep(path: Path, panels: Mapping[str, Mapping], reference: Mapping[str, float]) -> None:
    """Mean disturbance against a setting, a panel per setting.

    Args:
        path: PNG to write.
        panels: name of the setting to `{"x": [...], "log": bool, "curves": {method: [...]}}`, values times 1000.
        reference: unused settings' values, written into the title.
    """
    figure, axes = new_figure(len(panels))
    for axis, (name, panel) in zip(axes, panels.items()):
        for method, values in panel["curves"].items():
            axis.plot(panel["x"], values, marker=".", **method_style(method))
        if panel["log"]:
            axis.set_xscale("log", base=2)
            axis.set_xticks(panel["x"], [_short(x) for x in panel["x"]])
            axis.minorticks_off()
        axis.set(xlabel=name, ylabel="disturbance x 1000", yscale="log")
        axis.legend()
    figure.suptitle(", ".join(f"{name} {value:,}" for name, value in reference.items()))
    save_figure(figure, path)


def _short(number: int) -> str:
    if number >= 2**20:
        return f"{number / 2**20:g}M"
    return f"{number // 2**10}k" if number >= 8192 else f"{number}"
