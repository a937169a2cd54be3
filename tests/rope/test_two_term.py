"""Both terms of the criterion against sums over every distance in float64."""

import numpy as np
import pytest

from rope_jax.errors import InputError
from rope_jax.rope.distances import DistanceHistogram, position_pairs
from rope_jax.rope.embedding import ScaleVector, identity
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods.two_term import TwoTerm
from rope_jax.rope.two_term import changed_distances, unseen_angles

# Bins that do and do not line up with the contexts, one of a single distance and one of measure 0.
HISTOGRAM = DistanceHistogram((0, 1, 5, 40, 90, 300, 700), (3.0, 1.0, 0.0, 2.0, 2.5, 0.5))


def uniform(length):
    weights = length - np.arange(length)
    return weights / weights.sum()


def per_distance(histogram, edges, length):
    """The weight of each distance below `length`."""
    weights = np.concatenate([np.full(int(b - a), m / (b - a)) for a, b, m in zip(edges, edges[1:], histogram.mass)])
    weights = np.pad(weights, (0, max(length - len(weights), 0)))[:length]
    return weights / weights.sum()


def changed(theta, factor, weights):
    phase = np.arange(len(weights)) * theta * (1 - 1 / factor)
    return float(weights @ (1 - np.cos(phase)))


def unseen(theta, factor, original, weights):
    if original * theta >= 2 * np.pi:
        return 0.0
    angle = np.arange(len(weights)) * theta / factor % (2 * np.pi)
    past = angle - original * theta
    away = np.where(past > 0, np.minimum(past, 2 * np.pi - angle), 0)
    return float(weights @ (1 - np.cos(away)))


# Pairs from the fastest to those that hardly move, against contexts of 128, 1000 and 4096 tokens.
THETA = np.asarray([1.0, 0.31, 0.0491, 0.02, 0.0061, 0.0015, 2e-4, 1e-6], np.float32)
FACTORS = np.asarray([1.0, 1.0001, 1.3, 2.7, 4.0], np.float32)


@pytest.mark.parametrize(("original", "target"), [(128, 512), (1000, 4000), (4096, 8192)])
@pytest.mark.parametrize("measured", [False, True])
def test_terms(original, target, measured):
    if measured:
        seen, extended = HISTOGRAM.up_to(original), HISTOGRAM.stretched(original, target)
        stretched = np.asarray(HISTOGRAM.edges) * target // original if original >= 700 else HISTOGRAM.edges
        p, q = per_distance(HISTOGRAM, HISTOGRAM.edges, original), per_distance(HISTOGRAM, stretched, target)
    else:
        seen, extended, p, q = position_pairs(original), position_pairs(target), uniform(original), uniform(target)
    for factor in FACTORS:
        factors = np.full_like(THETA, factor)
        a, b = changed_distances(THETA, factors, seen), unseen_angles(THETA, factors, original, extended)
        exact = [changed(float(theta), float(factor), p) for theta in THETA]
        # Phases of hundreds of radians are float32, and so are sums near 1.
        np.testing.assert_allclose(a, exact, rtol=2e-5, atol=2e-6)
        exact = [unseen(float(theta), float(factor), original, q) for theta in THETA]
        np.testing.assert_allclose(b, exact, rtol=2e-5, atol=1e-7)


def test_small_costs_keep_their_digits():
    # 1 - cos of phases below 1e-3, which float32 cannot tell from 0.
    theta, factors = np.asarray([1e-6], np.float32), np.asarray([2.0], np.float32)
    exact = changed(float(theta[0]), 2.0, uniform(1000))
    assert exact < 1e-7
    np.testing.assert_allclose(changed_distances(theta, factors, position_pairs(1000)), [exact], rtol=1e-5)


def test_a_million_tokens():
    original, target = 4096, 2**20
    theta = np.asarray([0.001, 2e-4], np.float32)  # the first makes 166 rounds of the circle
    for factor in (1.0, 3.0, 256.0):
        factors = np.full_like(theta, factor)
        found = unseen_angles(theta, factors, original, position_pairs(target))
        exact = [unseen(float(rate), factor, original, uniform(target)) for rate in theta]
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-6)


def test_factors_cost_least():
    """No factor of a dense grid costs less, for plain pairs and one that scales already."""
    geometry = Geometry(1e4, 32, ScaleVector.create([1.0] * 15 + [2.0]))
    solution = TwoTerm(30.0)(geometry, Measure(128, 512))
    p, q = uniform(128), uniform(512)

    def cost(theta, factor):
        return changed(theta, factor, p) + 30 * unseen(theta, factor, 128, q)

    found = np.asarray(solution.scale.factors) / np.asarray(geometry.own.factors)
    for theta, factor in zip(geometry.theta().astype(float), found.astype(float)):
        if 128 * theta >= 2 * np.pi:
            assert factor == 1
        else:
            grid = np.geomspace(1, 4, 200)
            costs = [cost(theta, each) for each in grid]
            least = int(np.argmin(costs))
            assert cost(theta, factor) <= costs[least] * (1 + 1e-6)
            assert grid[max(least - 1, 0)] * (1 - 1e-5) <= factor <= grid[min(least + 1, 199)] * (1 + 1e-5)


def test_slow_pairs_are_interpolated_fast_ones_are_kept():
    factors = TwoTerm().relative(Geometry(1e4, 32, identity(32)), Measure(4096, 2**20)).factors
    np.testing.assert_array_equal(factors[:12], 1)  # a period or more within 4096 tokens
    assert (factors[12:] > 240).all() and factors.max() <= 256 * (1 + 1e-6)


def test_measured_distances_weigh():
    geometry, measure = Geometry(1e4, 32, identity(32)), Measure(128, 512)
    near, far = (DistanceHistogram((0, 8, 128), mass) for mass in ((1.0, 0.0), (0.0, 1.0)))
    # Where only near tokens are looked at, there is little that is unseen and hardly a reason to interpolate.
    factors = [TwoTerm(30.0, distances).relative(geometry, measure).factors for distances in (near, far)]
    assert (factors[0] <= factors[1] * (1 + 1e-6)).all() and factors[0].max() < factors[1].max()


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: TwoTerm(unseen_weight=-1.0), "unseen_weight"),
        (lambda: TwoTerm(unseen_weight=np.inf), "unseen_weight"),
        (lambda: TwoTerm(distances=HISTOGRAM).weights(Measure(701, 1402)), "distances"),
        (lambda: DistanceHistogram((0, 2), (1.0, 1.0)), "mass"),
        (lambda: DistanceHistogram((0, 2, 4), (0.0, 0.0)), "mass"),
        (lambda: DistanceHistogram((1, 2), (1.0,)), "edges"),
        (lambda: DistanceHistogram((0, 2, 2), (1.0, 1.0)), "edges"),
        (lambda: DistanceHistogram((0, 2, 4), (0.0, 1.0)).up_to(2), "mass"),
    ],
)
def test_unusable(make, field):
    with pytest.raises(InputError) as error:
        make()
    assert error.value.field == field
