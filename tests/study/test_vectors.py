"""Vectors by name, random ones, and their costs."""

import numpy as np
import pytest

from rope_jax.errors import InputError
from rope_jax.rope.embedding import ScaleVector, identity
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods import METHODS
from rope_jax.rope.methods.adjusted import Adjusted
from rope_jax.study.vectors import KINDS, check_vector, per_pair_costs, random_vectors, solved

GEOMETRY, MEASURE = Geometry(10000.0, 16, identity(16)), Measure(64, 256, intervals=16)


def test_names():
    interpolated = {
        name: np.sum(np.asarray(solved(name, GEOMETRY, MEASURE, 0.5).factors) == 4) for name in ("dprope", "dprope_n12")
    }
    assert interpolated == {"dprope": 4, "dprope_n12": 6}
    plain, adjusted = (solved(name, GEOMETRY, MEASURE, 0.5) for name in ("ntk", "ntk@yarn"))
    np.testing.assert_array_equal(plain.factors, adjusted.factors)
    assert adjusted.attention_factor == pytest.approx(0.1 * np.log(4) + 1) and plain.attention_factor == 1
    tapered = Adjusted(METHODS["two_term"](unseen_weight=100.0), taper=2)(GEOMETRY, MEASURE).scale.factors
    np.testing.assert_array_equal(solved("two_term_w100_t2", GEOMETRY, MEASURE, 0.5).factors, tapered)
    other = METHODS["dprope_argmin"]()(GEOMETRY, Measure(64, 256, intervals=8)).scale.factors
    np.testing.assert_array_equal(solved("dprope_argmin_b8", GEOMETRY, MEASURE, 0.5).factors, other)


@pytest.mark.parametrize(("name", "field"), [("nothing", "methods"), ("yarn+more", "methods"), ("dprope_n18", "n_hat")])
def test_names_that_mean_nothing_are_refused(name, field):
    with pytest.raises(InputError) as caught:
        check_vector(name, GEOMETRY, MEASURE)
    assert caught.value.field == field


def test_random_vectors_lie_between_keeping_and_interpolating():
    found = random_vectors(20, 8, 4.0)
    assert len(found) == 20 and {name.split()[0] for name in found} == set(KINDS)
    assert all(((f >= 1) & (f <= 4)).all() for f in found.values())
    assert len({f.tobytes() for f in found.values()}) >= 18
    np.testing.assert_array_equal(random_vectors(20, 8, 4.0)["free 3"], found["free 3"])


def test_costs_are_those_of_the_rope_room():
    costs = per_pair_costs(GEOMETRY, MEASURE, ScaleVector.create(np.full(8, 4.0)))
    assert all(len(values) == 8 for values in costs.values())
    solution = METHODS["pi"]()(GEOMETRY, MEASURE)
    np.testing.assert_allclose(costs["disturbance"], solution.disturbance, rtol=1e-4)
    unchanged = per_pair_costs(GEOMETRY, MEASURE, identity(8 * 2))
    assert max(unchanged["changed distances"]) == 0
    # The slowest pair, kept, meets angles that pre-training did not; interpolated, it does not.
    assert unchanged["unseen angles"][-1] > 0 == costs["unseen angles"][-1]
