"""The disturbance against the authors' solver, the paper's Table 3 and float64 NumPy."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import entr

from rope_jax.errors import InputError
from rope_jax.rope.angles import angle_histograms
from rope_jax.rope.disturbance import distance_between, disturbance, disturbances, divergence, shift
from rope_jax.rope.embedding import frequencies
from rope_jax.rope.exact.turns import Turns, divide
from rope_jax.rope.measure import (
    DISTANCES,
    EXTENDED_TO_PRETRAINED,
    JENSEN_SHANNON,
    PRETRAINED_TO_EXTENDED,
    PSEUDO_COUNT,
    Measure,
)
from rope_jax.rope.methods.by_parts import yarn
from rope_jax.rope.methods.interpolation import ntk
from tests.rope.golden import THETA, golden_case, keep_or_interpolate

# Counts are equal to the authors'; only the order of float32 sums differs.
PER_PAIR_TOLERANCE = 2e-6
DIVIDE = jax.jit(divide)
CASES = [(2, 360), (4, 360), (2, 90), (2, 180), (2, 720)]


@pytest.mark.parametrize(("extension", "intervals"), CASES)
def test_authors_solver(record_property, extension, intervals):
    case = golden_case(extension, intervals)
    measure = Measure(4096, 4096 * extension, intervals=intervals)
    candidates = keep_or_interpolate(128, extension)
    measured = np.stack([disturbance(THETA, factors, measure) for factors in candidates])
    kept, interpolated = measured
    reference_kept = np.array(case["extrapolation_per_pair"])
    reference_interpolated = np.array(case["interpolation_per_pair"])
    np.testing.assert_allclose(kept, reference_kept, rtol=0, atol=PER_PAIR_TOLERANCE)
    np.testing.assert_allclose(interpolated, reference_interpolated, rtol=0, atol=PER_PAIR_TOLERANCE)
    np.testing.assert_allclose(1e3 * kept.mean(), case["extrapolation_e3"], rtol=1e-3)
    np.testing.assert_allclose(1e3 * interpolated.mean(), case["interpolation_e3"], rtol=1e-3)
    np.testing.assert_allclose(1e3 * measured.min(axis=0).mean(), case["selected_e3"], rtol=1e-3)

    chosen = set(np.flatnonzero(kept > interpolated).tolist())
    margin = np.abs(reference_kept - reference_interpolated)
    near_ties = {int(pair) for pair in np.flatnonzero(margin <= 2 * PER_PAIR_TOLERANCE)}
    record_property("near_ties", {pair: float(margin[pair]) for pair in near_ties})
    differing = chosen ^ set(case["interpolated_pairs"])
    assert differing <= near_ties, f"{differing - near_ties} differ by more than rounding"


@pytest.mark.parametrize(("extension", "table_3"), [(2, 25.55), (4, 35.44)])
def test_yarn_of_table_3(extension, table_3):
    factors = yarn(10000.0, 128, extension, 4096).factors
    measured = 1e3 * float(disturbance(THETA, factors, Measure(4096, 4096 * extension)).mean())
    # Under the authors' measure, Hugging Face's own frequencies give 25.62 at 8k: 0.3% above the printed one.
    assert measured == pytest.approx(table_3, rel=4e-3)


@pytest.mark.parametrize("distance", DISTANCES)
def test_formula_in_float64(distance):
    measure = Measure(1000, 3000, intervals=90, distance=distance, pseudo_count=1e-3)
    factors = ntk(128, 2).factors
    before = np.asarray(angle_histograms(THETA, 1000, 90), np.float64)
    after = np.asarray(angle_histograms(THETA / factors, 3000, 90), np.float64)
    p, q = (before + 1e-3) / 1000, (after + 1e-3) / 3000
    if distance == EXTENDED_TO_PRETRAINED:
        p, q = q, p
    expected = (p * np.log(p / q)).sum(axis=1)
    if distance == JENSEN_SHANNON:
        p, q = before / 1000, after / 3000
        expected = (entr((p + q) / 2) - entr(p) / 2 - entr(q) / 2).sum(axis=1)
    measured = disturbance(THETA, factors, measure)
    np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=2e-6)


def test_only_the_default_direction_converges():
    def interpolation(distance, pseudo_count):
        factors = np.full(64, 2, np.float32)
        measure = Measure(4096, 8192, distance=distance, pseudo_count=pseudo_count)
        return float(disturbance(THETA, factors, measure).mean())

    default = [interpolation(PRETRAINED_TO_EXTENDED, pseudo_count) for pseudo_count in (6.1e-5, 1e-12)]
    printed = [interpolation(EXTENDED_TO_PRETRAINED, pseudo_count) for pseudo_count in (6.1e-5, 1e-12)]
    assert default[0] == pytest.approx(default[1], rel=1e-3) and default[1] == pytest.approx(24.08e-3, rel=1e-3)
    assert printed[1] > 2 * printed[0] > 8 * default[0]


@pytest.mark.parametrize(("epsilon", "published"), [(1e-5, 82.9), (1e-12, 334.7)])
def test_printed_direction_with_smoothed_shares(epsilon, published):
    # The measurement that refuted the printed direction smoothed shares, and not counts, and renormalised.
    p = np.asarray(angle_histograms(THETA / 2, 8192, 360), np.float64) / 8192 + epsilon
    q = np.asarray(angle_histograms(THETA, 4096, 360), np.float64) / 4096 + epsilon
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    assert 1e3 * (p * np.log(p / q)).sum(axis=1).mean() == pytest.approx(published, rel=1e-3)


@settings(deadline=None, max_examples=30)
@given(
    st.floats(100, 1e6),
    st.integers(32, 2000),
    st.floats(1, 8),
    st.floats(1, 8),
    st.sampled_from([16, 90, 360]),
)
def test_never_negative(base, original, extension, factor, intervals):
    theta = frequencies(base, 16)
    factors = np.full(8, factor, np.float32)
    measure = Measure(original, int(original * extension) + 1, intervals=intervals)
    measured = disturbance(theta, factors, measure)
    assert float(measured.min()) >= -1e-5
    assert np.isfinite(measured).all()


@settings(deadline=None, max_examples=20)
@given(st.floats(100, 1e6), st.integers(1, 3000), st.sampled_from(DISTANCES))
def test_nothing_changed_costs_nothing(base, length, distance):
    counts = angle_histograms(frequencies(base, 16), length, 90)
    measure = Measure(1, 2, distance=distance)
    np.testing.assert_array_equal([distance_between(row, row, measure) for row in counts], 0)


def test_disjoint_histograms():
    # All mass in one interval against all mass in the other: ln((n + c) / c), and c / n of its opposite.
    counts, reference = np.array([8, 0], np.int32), np.array([0, 8], np.int32)
    expected = (8 + 0.5) / 8 * np.log(8.5 / 0.5) + 0.5 / 8 * np.log(0.5 / 8.5)
    np.testing.assert_allclose(divergence(counts, reference, 0.5), expected, rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(1, 50), st.sampled_from(DISTANCES))
def test_scale_of_the_counts_does_not_matter(seed, scale, distance):
    before, after = np.random.default_rng(seed).integers(0, 9, (2, 24)).astype(np.int32)
    before[0] = after[0] = 1
    measure = Measure(1, 2, distance=distance, pseudo_count=1e-3)
    once = distance_between(before, after, measure)
    larger = dataclasses.replace(measure, pseudo_count=scale * 1e-3)
    scaled = distance_between(scale * before, scale * after, larger)
    np.testing.assert_allclose(scaled, once, rtol=1e-4, atol=1e-6)
    assert float(once) >= -1e-3
    if distance == JENSEN_SHANNON:
        assert float(once) + 1e-6 >= 0 and float(once) <= np.log(2) + 1e-6
        np.testing.assert_allclose(distance_between(after, before, measure), once, rtol=1e-4, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.floats(100, 1e6), st.integers(32, 2000), st.floats(1, 8, width=32), st.sampled_from([1, 2, 4]))
def test_slower_pairs_and_larger_factors_are_one(base, length, factor, scale):
    theta = base ** -(np.arange(0, 16, 2) / 16)
    larger = DIVIDE(Turns.create(theta), np.full(8, scale * factor, np.float32))
    slower = DIVIDE(Turns.create(theta / scale), np.full(8, factor, np.float32))
    # A quotient is rounded down to 2^-64 turns, which at these lengths moves no angle across an edge.
    counts = (angle_histograms(x, length, 90) for x in (larger, slower))
    assert np.abs(np.subtract(*map(np.asarray, counts))).sum() <= 2


@settings(deadline=None, max_examples=15)
@given(st.floats(100, 1e6), st.integers(64, 2000), st.floats(1.5, 6), st.floats(1, 8, width=32))
def test_exact_angles_agree_with_float64(base, original, extension, factor):
    theta = base ** -(np.arange(0, 16, 2) / 16)
    target = int(original * extension)

    def shares(frequency, length):
        index = np.floor(np.arange(length) * frequency / (2 * np.pi) * 90 + 1e-9).astype(int) % 90
        return (np.bincount(index, minlength=90) + PSEUDO_COUNT) / length

    measured = disturbance(Turns.create(theta), np.full(8, factor, np.float32), Measure(original, target, intervals=90))
    expected = [
        (p * np.log(p / q)).sum() for p, q in ((shares(t, original), shares(t / factor, target)) for t in theta)
    ]
    np.testing.assert_allclose(measured, expected, rtol=2e-4, atol=5e-6)


def test_candidates_and_frequencies_say_the_same():
    measure = Measure(512, 1024, intervals=90)
    candidates = np.stack([np.full(64, factor, np.float32) for factor in (1, 1.5, 2)])
    together = disturbances(THETA, candidates, measure)
    alone = np.stack([disturbance(THETA, factors, measure) for factors in candidates])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([shift(THETA, THETA / factors, measure) for factors in candidates], alone, atol=1e-6)


def test_strict_dtype_promotion():
    with jax.numpy_dtype_promotion("strict"):
        assert disturbance(THETA, np.ones(64, np.float32), Measure(64, 128, intervals=8)).dtype == np.float32


def test_another_length_compiles_nothing():
    theta, factors = frequencies(10000.0, 8), np.ones(4, np.float32)
    disturbance(theta, factors, Measure(64, 128, intervals=8))
    compiled = disturbance._cache_size()
    disturbance(theta, factors, Measure(100, 1000, intervals=8, pseudo_count=1e-3))
    assert disturbance._cache_size() == compiled


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"original": 0}, "original"),
        ({"original": 4096.0}, "original"),
        ({"target": 4096}, "target"),
        ({"target": 2048}, "target"),
        ({"target": 2**24 + 1}, "target"),
        ({"target": 2**31, "arithmetic": "exact"}, "target"),
        ({"target": 8192.5}, "target"),
        ({"intervals": 1}, "intervals"),
        ({"intervals": "360"}, "intervals"),
        ({"distance": "forward"}, "distance"),
        ({"pseudo_count": 0.0}, "pseudo_count"),
        ({"pseudo_count": float("nan")}, "pseudo_count"),
        ({"arithmetic": "float64"}, "arithmetic"),
    ],
)
def test_unusable_measure(changed, field):
    with pytest.raises(InputError) as error:
        Measure(**{"original": 4096, "target": 8192, **changed})
    assert error.value.field == field
