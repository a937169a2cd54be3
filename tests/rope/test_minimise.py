"""The continuous search against the paper's selection, the published bounds and other distances."""

import jax
import numpy as np
import pytest

from rope_jax.errors import InputError
from rope_jax.rope.disturbance import disturbance, disturbances
from rope_jax.rope.embedding import frequencies
from rope_jax.rope.exact.turns import exact_frequencies
from rope_jax.rope.measure import JENSEN_SHANNON, Measure
from rope_jax.rope.minimise import Search, minimise
from tests.rope.golden import THETA, keep_or_interpolate

SMALL = Search(coarse=61, steps=(1e-2, 1e-3, 1e-5), fan=6, finalists=8)


@pytest.mark.parametrize(("target", "bound"), [pytest.param(8192, 0.70, marks=pytest.mark.slow), (16384, 0.90)])
def test_bounds(target, bound):
    measure = Measure(4096, target)
    found = minimise(THETA, measure)
    assert 1e3 * float(found.cost.mean()) <= bound
    # What is reported is what the paper's measure says of the factors.
    again = disturbance(THETA, found.factors, measure)
    np.testing.assert_allclose(found.cost, again, rtol=1e-4, atol=2e-6)
    ends = disturbances(THETA, keep_or_interpolate(128, target / 4096), measure)
    np.testing.assert_allclose(found.ends, ends, rtol=1e-4, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "head_dim", "original"), [(500000.0, 128, 8192), (500000.0, 64, 8192), (10000.0, 256, 4096)]
)
def test_no_pair_is_worse_than_the_papers_selection(base, head_dim, original):
    theta, measure = exact_frequencies(base, head_dim), Measure(original, 4 * original)
    found, selected = [], []
    # Pairs are searched one by one: 32 at a time are one program for all head dimensions.
    for start in range(0, head_dim // 2, 32):
        pairs = jax.tree.map(lambda x, start=start: x[start : start + 32], theta)
        found.append(minimise(pairs, measure, SMALL).cost)
        selected.append(disturbances(pairs, keep_or_interpolate(64, 4), measure).min(axis=0))
    found, selected = np.concatenate(found), np.concatenate(selected)
    assert (found <= selected + 2e-6).all()
    assert float(found.mean()) < 0.5 * selected.mean()


@pytest.mark.slow
def test_another_distance():
    theta = frequencies(10000.0, 32)
    measure = Measure(256, 512, intervals=64, distance=JENSEN_SHANNON)
    found = minimise(theta, measure, SMALL)
    ends = disturbances(theta, keep_or_interpolate(32, 2), measure)
    assert (np.asarray(found.cost) <= np.asarray(ends).min(axis=0) + 2e-6).all()
    # The best under another distance is no better under this one.
    other = minimise(theta, Measure(256, 512, intervals=64), SMALL).factors
    assert float(found.cost.mean()) <= float(disturbance(theta, other, measure).mean()) + 1e-6


def test_pair_order_does_not_matter():
    theta = frequencies(10000.0, 32)
    order = np.random.default_rng(0).permutation(16)
    straight, shuffled = (minimise(x, Measure(256, 512, intervals=64), SMALL) for x in (theta, theta[order]))
    np.testing.assert_array_equal(shuffled.factors, np.asarray(straight.factors)[order])


@pytest.mark.parametrize(
    ("options", "field"),
    [({"coarse": 1}, "coarse"), ({"fan": 0}, "fan"), ({"finalists": 0}, "finalists"), ({"steps": (2.0,)}, "steps")],
)
def test_unusable_search(options, field):
    with pytest.raises(InputError) as error:
        Search(**options)
    assert error.value.field == field
