"""The analysis against the paper's Table 3 and the reference numbers per pair."""

import dataclasses
import importlib
import json

import numpy as np
import pytest

from experiments.analyze import analysis, analyze
from rope_jax.commands import analyze as procedure
from rope_jax.commands.reporter import Silent
from rope_jax.rope.methods import METHODS
from tests.rope.golden import golden_case

pytestmark = pytest.mark.usefixtures("optimised")


def load(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.lock()
    return config


@pytest.mark.parametrize(
    ("name", "factor", "table_3"),
    [
        ("llama2_8k", 2, {"pi": 24.08, "dprope_argmin": 6.71}),
        ("llama2_16k", 4, {"pi": 33.67, "yarn": 35.44, "dprope_argmin": 22.93}),
    ],
)
def test_table_3_and_reference_per_pair(tmp_path, name, factor, table_3):
    wanted = analysis(load(name), name)
    drawn = ("extrapolation", "pi", "yarn", "dprope", "dprope_argmin")
    wanted = dataclasses.replace(wanted, methods={method: wanted.methods[method] for method in drawn})
    result = procedure.analyze(wanted, tmp_path, Silent())
    for method, value in table_3.items():
        assert result["disturbance_e3"][method] == pytest.approx(value, abs=0.011)
    case = golden_case(factor)
    for method, key in (("extrapolation", "extrapolation_per_pair"), ("pi", "interpolation_per_pair")):
        # Sums of 360 float32 terms of up to 1.
        np.testing.assert_allclose(result["per_pair"][method], case[key], atol=2e-6)
    chosen = np.flatnonzero(np.array(result["factors"]["dprope_argmin"]) == factor)
    assert chosen.tolist() == case["interpolated_pairs"]


def test_every_method_is_tabulated_and_figures_are_drawn(tmp_path, capsys):
    config = load("tiny")
    result = analyze(config, tmp_path, "tiny")
    said = capsys.readouterr().out
    assert json.loads((tmp_path / "analysis.json").read_text()) == result
    assert result["disturbance_e3"].keys() == METHODS.keys() - {"abf", "explicit"}
    for value in result["disturbance_e3"].values():
        assert f" {value:.2f} " in said
    for figure in (1, 3, 6, 7, 8):
        assert (tmp_path / "figures" / f"figure_{figure}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_sweep(tmp_path):
    found = procedure.sweep(analysis(load("llama2_8k"), "llama2_8k"), tmp_path, Silent())
    assert json.loads((tmp_path / "sweep.json").read_text()) == found
    assert (tmp_path / "figures/sweep.png").exists()
    dimensions = dict(zip(found["interpolated dimensions"]["x"], found["interpolated dimensions"]["curves"]["dprope"]))
    # All dimensions interpolated is position interpolation; 80 is the paper's choice.
    assert dimensions[128] == pytest.approx(24.08, abs=0.011)
    assert dimensions[80] == pytest.approx(6.737, abs=0.002)
    assert found["extended context"]["x"][-1] == 2**20
