"""Selection against the authors' solver and the paper's settings."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.errors import InputError
from rope_jax.rope.disturbance import disturbances
from rope_jax.rope.embedding import frequencies
from rope_jax.rope.exact.turns import Turns
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods.by_parts import yarn
from rope_jax.rope.methods.interpolation import ntk
from rope_jax.rope.solve import Count, Threshold, choose, select
from tests.rope.golden import THETA, golden_case, keep_or_interpolate


def gain(cost):
    return jax.numpy.asarray(cost[0] - cost[1:].min(axis=0))


def mean_disturbance(selection):
    return float(np.take_along_axis(np.asarray(selection.disturbance), np.asarray(selection.winner)[None], 0).mean())


def dimensions_left(selection):
    return 2 * int((np.asarray(selection.winner) > 0).sum())


PAIRS_8K_80 = [2, 4, 5, 6, 9, 10, 17, 28, 30, *range(32, 45), *range(46, 64)]


@pytest.mark.parametrize(("extension", "dimensions"), [(2, 94), (4, 84)])
def test_argmin_is_table_3(extension, dimensions):
    case = golden_case(extension)
    selection = select(THETA, keep_or_interpolate(128, extension), Measure(4096, 4096 * extension))
    assert 1e3 * mean_disturbance(selection) == pytest.approx(case["selected_e3"], rel=1e-3)
    assert dimensions_left(selection) == dimensions
    assert np.flatnonzero(selection.winner).tolist() == case["interpolated_pairs"]
    np.testing.assert_array_equal(selection.factors, np.where(selection.winner, extension, 1))
    assert float(selection.margin.min()) >= 0


@pytest.mark.parametrize(("extension", "n_hat", "cost"), [(2, 80, 6.73), (4, 64, 23.03)])
def test_fine_tuned_settings(extension, n_hat, cost):
    case = golden_case(extension)
    kept, interpolated = (np.array(case[f"{name}_per_pair"]) for name in ("extrapolation", "interpolation"))
    gains = np.sort(kept - interpolated)[::-1]
    authors_cost = (kept.sum() - gains[: n_hat // 2].sum()) / 64
    candidates = keep_or_interpolate(128, extension)
    measure = Measure(4096, 4096 * extension)
    selection = select(THETA, candidates, measure, Count(n_hat))
    assert mean_disturbance(selection) == pytest.approx(authors_cost, rel=1e-4)
    assert 1e3 * authors_cost == pytest.approx(cost, abs=0.01)
    assert selection.thresholds[0] == pytest.approx(gains[n_hat // 2], abs=4e-6)
    assert selection.thresholds[1] == pytest.approx(gains[n_hat // 2 - 1], abs=4e-6)
    assert dimensions_left(selection) == n_hat
    if n_hat == 80:
        assert np.flatnonzero(selection.winner).tolist() == PAIRS_8K_80
    again = select(THETA, candidates, measure, Threshold(float(selection.thresholds[0])))
    np.testing.assert_array_equal(again.winner, selection.winner)


SMALL = Measure(256, 512, intervals=64)
SMALL_THETA = frequencies(10000.0, 32)
SMALL_CANDIDATES = np.stack([*keep_or_interpolate(32, 2), ntk(32, 2).factors, yarn(10000.0, 32, 2, 256).factors])


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 16))
def test_count_and_threshold_agree(pairs):
    by_count = select(SMALL_THETA, SMALL_CANDIDATES, SMALL, Count(2 * pairs))
    assert dimensions_left(by_count) == 2 * pairs
    low, high = by_count.thresholds.tolist()
    assert low <= high
    low = max(low, 0.0)
    for threshold in (low, low + (min(high, 1.0) - low) / 2):
        if low < high:
            by_threshold = select(SMALL_THETA, SMALL_CANDIDATES, SMALL, Threshold(threshold))
            np.testing.assert_array_equal(by_threshold.winner, by_count.winner)
            np.testing.assert_array_equal(by_threshold.factors, by_count.factors)
    if 0 < high < np.inf:
        fewer = select(SMALL_THETA, SMALL_CANDIDATES, SMALL, Threshold(high))
        assert dimensions_left(fewer) < 2 * pairs


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 1, width=32), st.floats(0, 1, width=32))
def test_fewer_leave_as_the_threshold_rises(first, second):
    low, high = sorted((first, second))
    eager = select(SMALL_THETA, SMALL_CANDIDATES, SMALL, Threshold(low))
    reluctant = select(SMALL_THETA, SMALL_CANDIDATES, SMALL, Threshold(high))
    left_eager, left_reluctant = np.asarray(eager.winner) > 0, np.asarray(reluctant.winner) > 0
    assert not (left_reluctant & ~left_eager).any()
    assert eager.thresholds[0] <= low < eager.thresholds[1]


@settings(deadline=None, max_examples=25)
@given(st.permutations(range(16)))
def test_pair_order_does_not_matter(order):
    order = np.array(order)
    straight = select(SMALL_THETA, SMALL_CANDIDATES, SMALL, Threshold(1e-3))
    shuffled = select(SMALL_THETA[order], SMALL_CANDIDATES[:, order], SMALL, Threshold(1e-3))
    np.testing.assert_allclose(shuffled.disturbance, straight.disturbance[:, order], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(shuffled.winner, straight.winner[order])
    np.testing.assert_array_equal(shuffled.factors, straight.factors[order])


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_choice_in_plain_python(data):
    # Coarse values, so that ties occur.
    rows = data.draw(st.integers(2, 4))
    cells = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=5, max_size=5)
    measured = np.array(data.draw(st.lists(cells, min_size=rows, max_size=rows)), np.float32)
    threshold = data.draw(st.sampled_from([0.0, 0.25, 0.3]))
    candidates = np.arange(1, 1 + measured.size, dtype=np.float32).reshape(measured.shape)
    leaves = Threshold(threshold).leaving(gain(measured))
    selection = choose(candidates, measured, measured, leaves)
    for pair, column in enumerate(measured.T.tolist()):
        best_other = min(range(1, rows), key=column.__getitem__)
        winner = best_other if column[0] > column[best_other] + threshold else 0
        assert int(selection.winner[pair]) == winner
        assert float(selection.factors[pair]) == candidates[winner, pair]
        runner_up = min(column[row] for row in range(rows) if row != winner)
        assert float(selection.margin[pair]) == pytest.approx(runner_up - column[winner])


def test_equal_candidates_keep_the_default():
    candidates = np.repeat(SMALL_CANDIDATES[1:2], 3, axis=0)
    selection = select(SMALL_THETA, candidates, SMALL, Threshold(0.0))
    np.testing.assert_array_equal(selection.winner, 0)
    np.testing.assert_array_equal(selection.margin, 0)


def test_equal_gains_are_parted_in_order():
    measured = np.array([[0.5, 0.5, 0.5, 0.5], [0.0, 0.25, 0.25, 0.5]], np.float32)
    candidates = np.ones_like(measured)
    leaves = Count(4).leaving(gain(measured))
    np.testing.assert_array_equal(leaves, [True, True, False, False])
    np.testing.assert_array_equal(choose(candidates, measured, measured, leaves).thresholds, 0.25)


def test_ends_of_the_count():
    nobody = select(SMALL_THETA, SMALL_CANDIDATES, SMALL, Count(0))
    everybody = select(SMALL_THETA, SMALL_CANDIDATES, SMALL, Count(32))
    assert nobody.thresholds[1] == np.inf and everybody.thresholds[0] == -np.inf
    np.testing.assert_array_equal(nobody.factors, SMALL_CANDIDATES[0])
    assert int(everybody.winner.min()) > 0


def test_exact_and_float32_agree_where_float32_is_exact_enough():
    plain, exact = (
        select(theta, SMALL_CANDIDATES, SMALL, Threshold(0.02)) for theta in (SMALL_THETA, Turns.create(SMALL_THETA))
    )
    np.testing.assert_allclose(plain.disturbance, exact.disturbance, atol=5e-3)
    np.testing.assert_array_equal(plain.winner, exact.winner)


def test_selection_is_a_pytree():
    measured = disturbances(SMALL_THETA, SMALL_CANDIDATES, SMALL)
    thresholds = np.array([0.0, 0.01, 0.1], np.float32)
    sweep = jax.vmap(lambda t: choose(SMALL_CANDIDATES, measured, measured, gain(measured) > t))(thresholds)
    assert sweep.factors.shape == (3, 16)
    single = jax.tree.map(lambda leaf: leaf[1], sweep)
    expected = select(SMALL_THETA, SMALL_CANDIDATES, SMALL, Threshold(0.01))
    np.testing.assert_array_equal(single.winner, expected.winner)
    assert expected.winner.dtype == np.int32 and expected.factors.dtype == np.float32


def test_strict_dtype_promotion():
    with jax.numpy_dtype_promotion("strict"):
        selection = select(SMALL_THETA, SMALL_CANDIDATES, SMALL, Count(8))
        assert dimensions_left(selection) == 8
        assert selection.margin.dtype == selection.thresholds.dtype == np.float32


@pytest.mark.parametrize("threshold", [-1e-9, np.nan, np.inf])
def test_unusable_threshold(threshold):
    with pytest.raises(InputError) as error:
        Threshold(threshold)
    assert error.value.field == "threshold"


@pytest.mark.parametrize("n_hat", [3, -2, 34, 8.0, None])
def test_unusable_count(n_hat):
    with pytest.raises(InputError) as error:
        select(SMALL_THETA, SMALL_CANDIDATES, SMALL, Count(n_hat))
    assert error.value.field == "n_hat"


@pytest.mark.parametrize(
    "candidates",
    [
        SMALL_CANDIDATES[:1],
        SMALL_CANDIDATES[:, :8],
        np.zeros_like(SMALL_CANDIDATES),
        np.full_like(SMALL_CANDIDATES, np.nan),
    ],
)
def test_unusable_candidates(candidates):
    with pytest.raises(InputError) as error:
        select(SMALL_THETA, candidates, SMALL)
    assert error.value.field == "candidates"
