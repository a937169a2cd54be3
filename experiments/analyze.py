"""Angle distributions and their disturbance under every method, from a config alone: no weights, in seconds.

python -m experiments.analyze --config=configs/llama2_8k.py
python -m experiments.analyze --config=configs/llama2_16k.py --sweep

Prints a table and writes `analysis.json` and the paper's figures 1, 3, 6, 7 and 8 under `--workdir`; `--sweep` adds
the paper's ablations over interpolated dimensions and intervals, and lengths up to a million tokens.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments import cli, settings
from experiments.progress import say
from experiments.settings import Extension
from rope_jax.errors import InputError
from rope_jax.files import write_json
from rope_jax.interop.hf_config import read_config
from rope_jax.report import figures, plots
from rope_jax.report.styles import NAMES
from rope_jax.rope.angles import angle_histograms
from rope_jax.rope.embedding import identity
from rope_jax.rope.methods import METHODS
from rope_jax.rope.methods.dprope import DPRopeArgmin
from rope_jax.rope.methods.method import Solution

LLAMA2_8K = Path(__file__).resolve().parents[1] / "configs" / "llama2_8k.py"

# The pairs that the paper's figures show, of LLaMA2's 64: one whose angles every context covers, one resonant.
PAIRS = (6, 22)
MILLION = 2**20

SWEEP = flags.DEFINE_bool("sweep", False, "Also sweep interpolated dimensions, intervals and lengths.")


def analyze(config: ConfigDict, folder: Path, name: str, with_sweep: bool = False) -> dict:
    """Solves and measures every method.

    Args:
        config: the run's config; needs `rope.base`, `rope.head_dim` and `context.original`, or `model.path`.
        folder: where `analysis.json` and `figures/` go.
        name: of the run.
        with_sweep: also sweep settings, into `sweep.json`.

    Returns:
        What `analysis.json` holds.

    Raises:
        InputError: naming the field that cannot be used.
    """
    extension = geometry(config)
    model, measure = extension.geometry, extension.measure
    # These two are what a config gives them.
    given = {"explicit": bool(config.rope.factors), "abf": config.rope.new_base > 0}
    methods = [method for method in METHODS if given.get(method, True)]
    say(
        f"{name}: {measure.original:,} to {measure.target:,} tokens, base {model.base:g}, head dimension "
        f"{model.head_dim}, {measure.intervals} intervals"
    )
    solutions = {method: extension.solve(method) for method in methods}
    means = {method: 1e3 * float(np.mean(solution.disturbance)) for method, solution in solutions.items()}
    say(f"  {'method':<18} {'disturbance x 1000':>18} {'against PI':>11} {'interpolated dimensions':>24}")
    for method, solution in solutions.items():
        say(
            f"  {NAMES[method]:<18} {means[method]:>18.2f} {means[method] / means['pi'] - 1:>+11.0%} "
            f"{solution.interpolated_dimensions:>24}"
        )
    analysis = {
        "disturbance_e3": means,
        "per_pair": {m: np.asarray(s.disturbance, float).tolist() for m, s in solutions.items()},
        "factors": {m: np.asarray(s.scale.factors, float).tolist() for m, s in solutions.items()},
        "interpolated_dimensions": {m: s.interpolated_dimensions for m, s in solutions.items()},
        "config": json.loads(config.to_json()),
    }
    write_json(folder / "analysis.json", analysis)
    draw(folder / "figures", extension, solutions)
    say(f"numbers  {folder / 'analysis.json'}\nfigures  {folder / 'figures'}")
    if with_sweep:
        write_json(folder / "sweep.json", sweep(extension, folder / "figures"))
        say(f"sweep    {folder / 'sweep.json'}")
    return analysis


def geometry(config: ConfigDict) -> Extension:
    """What is extended: from the config's own fields where they suffice, else from the model's `config.json`."""
    if config.rope.base and config.rope.head_dim and config.context.original:
        base, head_dim = config.rope.base, config.rope.head_dim
        return settings.extension(config, base, head_dim, config.context.original, identity(head_dim), layers=None)
    if not config.model.path:
        raise InputError(
            "config.rope.base, config.rope.head_dim and config.context.original are not all set, and config.model.path "
            "is empty: set the three, or name a model"
        )
    source = read_config(settings.model_folder(config.model.path))
    return settings.model_extension(config, source.config, source.rope)


def draw(folder: Path, extension: Extension, solutions: dict[str, Solution]) -> None:
    """Draws the paper's figures."""
    e, model = extension.measure, extension.geometry
    theta, own = model.theta(), np.asarray(model.own.factors)
    pairs = [pair * len(theta) // 64 for pair in PAIRS]

    def shares(factors, length):
        counts = np.asarray(angle_histograms(theta / factors, length, e.intervals))
        return counts / length

    trained = {f"pre-training, {e.original:,} tokens": shares(np.ones(len(theta)), e.original)}
    extended = {
        NAMES[method]: shares(np.asarray(solution.scale.factors) / own, e.target)
        for method, solution in solutions.items()
    }

    def panels(curves):
        return {name: {f"pair {pair}": rows[pair] for pair in pairs} for name, rows in curves.items()}

    def chosen(*methods):
        return {NAMES[method]: extended[NAMES[method]] for method in methods}

    at = f"at {e.target:,} tokens"
    pictures: list[figures.Figure] = [
        figures.Histograms("figure_1", f"Rotary angles {at}", panels(trained | chosen("extrapolation", "pi"))),
        figures.Histograms("figure_3", "Rotary angles in pre-training", panels(trained)),
        figures.Histograms("figure_6", f"Rotary angles {at}", panels(trained | chosen("pi", "yarn", "dprope"))),
    ]
    measured = {method: solution.disturbance for method, solution in solutions.items()}
    for name, methods in (("figure_7", ("extrapolation", "pi")), ("figure_8", ("pi", "yarn", "dprope"))):
        curves = {method: measured[method] for method in methods}
        pictures.append(figures.disturbance_per_pair(curves, f"Disturbance per pair {at}", name))
    for picture in pictures:
        plots.save(picture, folder)


def sweep(extension: Extension, folder: Path) -> dict:
    """The ablations over interpolated dimensions, intervals (the paper's tables 4 to 7) and lengths.

    Args:
        extension: where the sweeps start from.
        folder: where `sweep.png` goes.

    Returns:
        Setting to `{"x": [...], "curves": {method: [disturbance x 1000]}}`.
    """
    e, model = extension.measure, extension.geometry

    def mean(method, **fields):
        solution = extension.methods[method](model, dataclasses.replace(e, **fields))
        return 1e3 * float(np.mean(solution.disturbance))

    def curves(methods, field, values):
        return {"x": values, "curves": {m: [mean(m, **{field: value}) for value in values] for m in methods}}

    def by_count():
        # What each pair gains by interpolation is measured once; those that gain most interpolate first.
        extrapolated, interpolated = np.asarray(DPRopeArgmin()(model, e).selection.disturbance, np.float64)
        gains = np.sort(extrapolated - interpolated)[::-1]
        return (1e3 * (extrapolated.sum() - np.cumsum(gains)) / len(gains)).tolist()

    doublings = range(1, (MILLION // e.original).bit_length())
    found = {
        "interpolated dimensions": {"x": list(range(2, model.head_dim + 1, 2)), "curves": {"dprope": by_count()}},
        "intervals": curves(["pi", "yarn", "dprope"], "intervals", [90, 180, 360, 720]),
        "extended context": curves(
            ["extrapolation", "pi", "yarn", "dprope_argmin"], "target", [e.original * 2**k for k in doublings]
        ),
    }
    settings = {"original context": e.original, "extended context": e.target, "intervals": e.intervals}
    plots.save(figures.sweep(found, settings, logarithmic=("intervals", "extended context")), folder)
    return found


if __name__ == "__main__":
    cli.run(lambda *run: analyze(*run, with_sweep=SWEEP.value), LLAMA2_8K)
