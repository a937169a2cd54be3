"""`experiments.analyze --usage` on the model of a finished run."""

import dataclasses

import numpy as np
import pytest

from rope_jax.cli.analyze import analysis, measure_usage
from rope_jax.commands import analyze as procedure
from rope_jax.commands.reporter import Silent
from rope_jax.errors import InputError
from tests.experiments.helpers import assigned, small_config


@pytest.mark.slow
def test_energies_and_distances_of_a_model_weigh_its_analysis(texts, finished, tmp_path):
    config = assigned(small_config(texts), {"model.path": str(finished[0] / "export"), "usage.tokens": 96})
    config = assigned(config, {"usage.texts": 3})
    found = measure_usage(config, tmp_path, Silent())
    assert found.energy.shape == (2, 2, 8) and found.about["texts"] == 3 and found.about["model"] == "export"
    file = str(tmp_path / "usage.json")
    config = assigned(config, {"solve.energy": file, "solve.distances": file})
    wanted = analysis(config, "small", named=True)
    np.testing.assert_allclose(wanted.energy, found.energy.mean(axis=(0, 1)) / found.energy.mean(), rtol=1e-6)
    assert wanted.methods["two_term"].distances == found.distances()
    shown = ("extrapolation", "pi", "yarn", "dprope")
    wanted = dataclasses.replace(wanted, methods={method: wanted.methods[method] for method in shown})
    result = procedure.analyze(wanted, tmp_path, Silent())
    for method in shown:
        weighted = np.average(result["per_pair"][method], weights=wanted.energy)
        assert result["disturbance_e3"][method] == pytest.approx(1e3 * weighted)
    # Selected by layer: the energies of a layer rank and weigh its pairs.
    layered = analysis(assigned(config, {"solve.by_layer": True}), "small", named=True)
    rows, energies = layered.methods["dprope"](layered.geometry, layered.measure).shifts, found.energy.mean(axis=1)
    assert rows.shape == (2, 8) and layered.methods["dprope"].energy == layered.energy
    layered = dataclasses.replace(layered, methods={method: layered.methods[method] for method in shown})
    by_layer = procedure.analyze(layered, tmp_path, Silent())
    weighted = 1e3 * np.average(rows, weights=energies)
    assert by_layer["disturbance_e3"]["dprope"] == pytest.approx(weighted)
    assert by_layer["disturbance_e3"]["pi"] == pytest.approx(result["disturbance_e3"]["pi"])
    # What is not changed is familiar; what is interpolated fully stays among the angles that were seen.
    assert result["changed_e3"]["extrapolation"] == 0 < result["unseen_e3"]["extrapolation"]
    assert result["unseen_e3"]["pi"] < 1e-3 * result["changed_e3"]["pi"]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"model.path": ""}, "model.path"),
        ({"usage.tokens": 100_000}, "usage.texts"),
        ({"eval.split": "dev"}, "eval.split"),
    ],
)
def test_usage_that_cannot_be_measured(texts, finished, tmp_path, values, field):
    config = assigned(small_config(texts), {"model.path": str(finished[0] / "export"), **values})
    with pytest.raises(InputError) as error:
        measure_usage(config, tmp_path, Silent())
    assert error.value.field == f"config.{field}"
