"""An attention factor, a taper and a choice of layers for any method."""

import dataclasses
import math

import numpy as np
import pytest

from rope_jax.errors import InputError
from rope_jax.files import write_json
from rope_jax.interop.factor_files import read_factors
from rope_jax.rope.embedding import ScaleVector, identity
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods import METHODS
from rope_jax.rope.methods.adjusted import Adjusted, tapered

MEASURE = Measure(64, 256, intervals=16)
OWN = ScaleVector.create(np.linspace(1, 2, 8), 1.25)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, 1.0),
        (1.03, 1.03),
        ("1.03", 1.03),
        ("yarn", 0.1 * math.log(4) + 1),
        ("longrope", math.sqrt(math.log(256) / math.log(64))),
    ],
)
def test_attention_factor(given, expected):
    geometry = Geometry(1e4, 16, OWN)
    plain, adjusted = METHODS["pi"]()(geometry, MEASURE), Adjusted(METHODS["pi"](), given)(geometry, MEASURE)
    # It takes the place of the method's own, on top of the model's.
    assert float(adjusted.scale.attention_factor) == pytest.approx(1.25 * expected, rel=1e-6)
    np.testing.assert_array_equal(adjusted.scale.factors, plain.scale.factors)
    np.testing.assert_array_equal(adjusted.disturbance, plain.disturbance)


def test_taper_is_a_mean_of_logarithms():
    rng = np.random.default_rng(0)
    rows = np.exp(rng.random((2, 12)))
    weights = np.asarray([1 + math.cos(math.pi * n / 3) for n in (-2, -1, 0, 1, 2)])
    for row, found in zip(rows, np.asarray(tapered(rows.astype(np.float32), 2))):
        near = [[row[min(max(pair + n, 0), 11)] for n in (-2, -1, 0, 1, 2)] for pair in range(12)]
        expected = [math.prod(f ** (w / weights.sum()) for f, w in zip(factors, weights)) for factors in near]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_tapered_cut_rises_between_its_ends():
    cut = METHODS["explicit"](factors=(1.0,) * 4 + (4.0,) * 4)
    solution = Adjusted(cut, taper=2)(Geometry(1e4, 16, OWN), MEASURE)
    factors = np.asarray(solution.scale.factors) / np.asarray(OWN.factors)
    np.testing.assert_allclose(factors[[0, 1, 6, 7]], [1, 1, 4, 4], rtol=1e-6)
    assert (np.diff(factors[1:7]) > 0).all() and solution.interpolated_dimensions == 12


def test_layers_that_are_not_extended_keep_the_own_scaling(tmp_path):
    geometry = Geometry(1e4, 16, OWN, layers=3)
    method = Adjusted(METHODS["yarn"](), layers=(2, 0))
    solution, whole = method(geometry, MEASURE), METHODS["yarn"]()(geometry, MEASURE)
    rows = [whole.scale, OWN, whole.scale]
    np.testing.assert_array_equal(solution.scale.factors, [row.factors for row in rows])
    np.testing.assert_array_equal(solution.scale.attention_factor, [row.attention_factor for row in rows])
    own = METHODS["extrapolation"]()(geometry, MEASURE).disturbance
    np.testing.assert_allclose(solution.disturbance, (2 * whole.disturbance + own) / 3, rtol=1e-6)
    # As a run writes it, and as `rope.factors` reads it.
    write_json(
        tmp_path / "scale.json", {name: np.asarray(x, float).tolist() for name, x in vars(solution.scale).items()}
    )
    read = read_factors(tmp_path / "scale.json")
    assert method.layered == "layers" and read.layered == "factors"
    again = read(geometry, MEASURE).scale
    np.testing.assert_array_equal(again.factors, solution.scale.factors)
    np.testing.assert_array_equal(again.attention_factor, solution.scale.attention_factor)
    short = dataclasses.replace(read, attention_factor=(1.0, 1.0))
    for wrong, field in ((Adjusted(METHODS["pi"](), layers=(3,)), "layers"), (short, "attention_factor")):
        with pytest.raises(InputError) as error:
            wrong.check(geometry, MEASURE)
        assert error.value.field == field


@pytest.mark.parametrize(
    ("adjustment", "field"),
    [
        ({"attention_factor": "hot"}, "attention_factor"),
        ({"attention_factor": 0.0}, "attention_factor"),
        ({"attention_factor": math.nan}, "attention_factor"),
        ({"taper": -1}, "taper"),
    ],
)
def test_unusable_adjustments(adjustment, field):
    with pytest.raises(InputError) as error:
        Adjusted(METHODS["pi"](), **adjustment)
    assert error.value.field == field


def test_what_the_method_cannot_do_is_told():
    with pytest.raises(InputError) as error:
        Adjusted(METHODS["explicit"](), 1.1).check(Geometry(1e4, 16, identity(16)), MEASURE)
    assert error.value.field == "factors"


def test_a_taper_is_shorter_than_the_vector():
    Adjusted(METHODS["yarn"](), taper=7).check(Geometry(1e4, 16, identity(16)), MEASURE)
    with pytest.raises(InputError, match="8, and there are 8 pairs") as error:
        Adjusted(METHODS["yarn"](), taper=8).check(Geometry(1e4, 16, identity(16)), MEASURE)
    assert error.value.field == "taper"
