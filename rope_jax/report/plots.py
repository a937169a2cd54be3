"""The pictures of a run's page. Each function writes one PNG from plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

# Okabe and Ito's colours, which stay apart for colour-blind readers, for what is compared most; one per method in
# every picture.
STYLES = {
    "own": ("as its config says", "#222222"),
    "extrapolation": ("extrapolation", "#777777"),
    "pi": ("PI", "#E69F00"),
    "ntk": ("NTK", "#009E73"),
    "dynamic_ntk": ("dynamic NTK", "#66C2A5"),
    "yarn": ("YaRN", "#0072B2"),
    "yarn_paper": ("YaRN (paper's form)", "#7FA7D8"),
    "yarn_wavelength": ("YaRN (wavelengths)", "#4B3F99"),
    "yarn_resonance": ("Resonance YaRN", "#A6761D"),
    "llama3": ("LLaMA-3.1", "#B8A200"),
    "abf": ("base change", "#8C564B"),
    "critical_base": ("critical base", "#C49C94"),
    "p_rope": ("p-RoPE", "#BCBD22"),
    "dprope_argmin": ("DPRoPE (argmin)", "#CC79A7"),
    "dprope": ("DPRoPE", "#D55E00"),
    "dprope_robust": ("DPRoPE (robust)", "#882255"),
    "minimal": ("minimal disturbance", "#000000"),
    "explicit": ("explicit", "#56B4E9"),
    "learned": ("learned", "#E7298A"),
}
NAMES = {method: name for method, (name, _) in STYLES.items()}
COLOURS = {method: colour for method, (_, colour) in STYLES.items()}


def disturbance_per_pair(
    path: Path, disturbance: Mapping[str, Sequence[float]], title: str = "Disturbance per pair"
) -> None:
    """Disturbance of each frequency pair (the paper's figures 7 and 8).

    Args:
        path: PNG to write.
        disturbance: method to `[D/2]` nats.
        title: of the picture.
    """
    figure, axes = new_figure(1)
    for method, values in disturbance.items():
        axes[0].plot(values, marker=".", **method_style(method))
    # Values span four decades and may be zero.
    axes[0].set_yscale("symlog", linthresh=1e-3)
    axes[0].set_ylim(bottom=0)
    axes[0].set(xlabel="frequency pair i (fast to slow)", ylabel="disturbance D_i (nats)", title=title)
    axes[0].legend()
    save_figure(figure, path)


def factors_per_pair(path: Path, factors: Mapping[str, Sequence]) -> None:
    """Scale factor of each frequency pair.

    Args:
        path: PNG to write.
        factors: method to `[D/2]`, or `[layers, D/2]` of which the mean is drawn.
    """
    figure, axes = new_figure(1)
    for method, values in factors.items():
        axes[0].plot(np.atleast_2d(values).mean(axis=0), marker=".", drawstyle="steps-mid", **method_style(method))
    axes[0].set(
        xlabel="frequency pair i (fast to slow)",
        ylabel="factor f_i",
        title="Scale vector: 1 extrapolates, s interpolates",
    )
    axes[0].legend()
    save_figure(figure, path)


def losses(path: Path, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Training loss of each fine-tune.

    Args:
        path: PNG to write.
        curves: method to rows with `step` and `loss` (nats per token).
    """
    figure, axes = new_figure(1)
    for method, rows in curves.items():
        axes[0].plot([row["step"] for row in rows], [row["loss"] for row in rows], **method_style(method))
    axes[0].set(xlabel="step", ylabel="loss (nats per token)", title="Fine-tuning at the extended context")
    axes[0].legend()
    save_figure(figure, path)


def perplexity_by_position(
    path: Path, before: Mapping[str, Mapping], after: Mapping[str, Mapping], original: int
) -> None:
    """Perplexity against position in the window, zero-shot and fine-tuned, with 95% bands.

    Args:
        path: PNG to write.
        before: method to `{"starts", "ends", "perplexity", "low", "high"}`, sequences over buckets.
        after: likewise, after fine-tuning.
        original: pre-training context, tokens, drawn as a line.
    """
    figure, axes = new_figure(2, sharey=True)
    for axis, curves, title in zip(axes, (before, after), ("before fine-tuning", "after fine-tuning")):
        for method, curve in curves.items():
            middle = np.sqrt(np.array(curve["starts"], float) * np.array(curve["ends"]))
            axis.plot(middle, curve["perplexity"], marker=".", **method_style(method))
            axis.fill_between(middle, curve["low"], curve["high"], color=method_style(method)["color"], alpha=0.15)
        axis.axvline(original, color="black", linestyle=":", linewidth=1)
        axis.text(original, 0.99, " trained up to here", transform=axis.get_xaxis_transform(), va="top", size=8)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set(xlabel="position in the window (tokens)", title=title)
    axes[0].set(ylabel="perplexity", yscale="log")
    axes[0].yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 3, 5), numticks=20))
    axes[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[0].yaxis.set_minor_locator(NullLocator())
    # The first few tokens of a window are nearly unpredictable for every method; they would flatten the rest.
    shown = [
        value
        for curves in (before, after)
        for curve in curves.values()
        for start, value in zip(curve["starts"], curve["perplexity"])
        if start >= original / 16
    ]
    axes[0].set_ylim(0.85 * min(shown), 1.25 * max(shown))
    axes[0].legend()
    save_figure(figure, path)


def passkey_grids(path: Path, grids: Mapping[str, Mapping]) -> None:
    """Passkey retrieval, length by depth, one panel per method.

    Args:
        path: PNG to write.
        grids: method to `{"lengths": [...], "depths": [...], "rate": [lengths][depths]}`, rates in 0 .. 1.
    """
    figure, axes = new_figure(len(grids), width=3.2, sharey=True)
    for axis, (method, grid) in zip(axes, grids.items()):
        rate = np.array(grid["rate"], float).T
        axis.grid(False)
        image = axis.imshow(rate, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axis.set_xticks(range(len(grid["lengths"])), [f"{length:,}" for length in grid["lengths"]])
        axis.set_yticks(range(len(grid["depths"])), [f"{depth:.0%}" for depth in grid["depths"]])
        axis.set(title=f"{NAMES[method]}\n{rate.mean():.0%} found", xlabel="prompt (tokens)")
    axes[0].set_ylabel("depth of the key")
    figure.colorbar(image, ax=axes, label="keys found")
    save_figure(figure, path)


def method_style(method: str) -> dict:
    """Label, colour and weight of a method's line, the same in every picture."""
    # DPRoPE lies on top: where methods agree it is the one that is asked about.
    ours = "dprope" in method
    return {
        "label": NAMES[method],
        "color": COLOURS[method],
        "linewidth": 2 if ours else 1.3,
        "zorder": 3 if ours else 2,
    }


def new_figure(panels: int, width: float = 5.5, **options):
    """A figure of panels side by side, and the array of their axes."""
    figure = Figure(figsize=(max(6.5, width * panels), 4.0), dpi=120, layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, panels, **options))
    for axis in axes:
        axis.grid(alpha=0.25)
    return figure, axes


def save_figure(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version in the metadata equal runs give equal files.
    with matplotlib.rc_context({"savefig.bbox": "tight"}):
        figure.savefig(path, metadata={"Software": None})
