"""The analysis against the paper's Table 3 and the reference numbers per pair."""

import importlib
import json

import numpy as np
import pytest

from experiments.analyze import analyze, geometry, sweep
from rope_jax.errors import InputError
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
    analysis = analyze(load(name), tmp_path, name)
    assert json.loads((tmp_path / "analysis.json").read_text()) == analysis
    for method, value in table_3.items():
        assert analysis["disturbance_e3"][method] == pytest.approx(value, abs=0.011)
    case = golden_case(factor)
    for method, key in (("extrapolation", "extrapolation_per_pair"), ("pi", "interpolation_per_pair")):
        # Sums of 360 float32 terms of up to 1.
        np.testing.assert_allclose(analysis["per_pair"][method], case[key], atol=2e-6)
    chosen = np.flatnonzero(np.array(analysis["factors"]["dprope_argmin"]) == factor)
    assert chosen.tolist() == case["interpolated_pairs"]
    for figure in (1, 3, 6, 7, 8):
        assert (tmp_path / "figures" / f"figure_{figure}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_sweep(tmp_path):
    found = sweep(geometry(load("llama2_8k")), tmp_path)
    assert (tmp_path / "sweep.png").exists()
    dimensions = dict(zip(found["interpolated dimensions"]["x"], found["interpolated dimensions"]["curves"]["dprope"]))
    # All dimensions interpolated is position interpolation; 80 is the paper's choice.
    assert dimensions[128] == pytest.approx(24.08, abs=0.011)
    assert dimensions[80] == pytest.approx(6.737, abs=0.002)
    assert found["extended context"]["x"][-1] == 2**20


def test_needs_a_geometry_or_a_model():
    config = load("local")
    with pytest.raises(InputError, match=r"config\.rope\.base.*are not all set, and config\.model\.path is empty"):
        geometry(config)


def test_odd_head_dimension():
    config = load("llama2_8k")
    config.rope.head_dim = 127
    with pytest.raises(InputError, match=r"rope\.head_dim is 127.*even"):
        geometry(config)
