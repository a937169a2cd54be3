"""Selection against the authors' solver and the paper's settings."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.errors import InputError
from rope_jax.rope import scaling
from rope_jax.rope.disturbance import PSEUDO_COUNT
from rope_jax.rope.embedding import ScaleVector, frequencies
from rope_jax.rope.solve import choose, gain, measure, noise_floor, select_by_count, select_by_threshold
from rope_jax.rope.turns import Turns

THETA = frequencies(10000.0, 128)
PAIRS_8K_80 = [2, 4, 5, 6, 9, 10, 17, 28, 30, *range(32, 45), *range(46, 64)]


def keep_or_interpolate(head_dim, extension):
    return np.stack(
        [
            np.asarray(scaling.extrapolation(head_dim).factors),
            np.asarray(scaling.position_interpolation(head_dim, extension).factors),
        ]
    )


def golden_case(shared, extension):
    cases = json.loads((shared / "golden" / "disturbance.json").read_text())["cases"]
    wanted = (extension, 360)
    (case,) = (c for c in cases if (c["config"]["scaling_factor"], c["config"]["intervals"]) == wanted)
    return case


@pytest.mark.parametrize(("extension", "dimensions"), [(2, 94), (4, 84)])
def test_argmin_is_table_3(shared, extension, dimensions):
    case = golden_case(shared, extension)
    selection = select_by_threshold(
        THETA, keep_or_interpolate(128, extension), 4096, 4096 * extension, 360, threshold=0.0
    )
    assert 1e3 * float(selection.mean_disturbance) == pytest.approx(case["selected_e3"], rel=1e-3)
    assert int(selection.interpolated_dimensions) == dimensions
    assert np.flatnonzero(selection.winner).tolist() == case["interpolated_pairs"]
    np.testing.assert_array_equal(selection.factors, np.where(selection.winner, extension, 1))
    assert float(selection.margin.min()) >= 0


@pytest.mark.parametrize(("extension", "n_hat", "cost"), [(2, 80, 6.73), (4, 64, 23.03)])
def test_fine_tuned_settings(shared, extension, n_hat, cost):
    case = golden_case(shared, extension)
    kept, interpolated = (np.array(case[f"{name}_per_pair"]) for name in ("extrapolation", "interpolation"))
    gains = np.sort(kept - interpolated)[::-1]
    authors_cost = (kept.sum() - gains[: n_hat // 2].sum()) / 64
    candidates = keep_or_interpolate(128, extension)
    selection = select_by_count(THETA, candidates, 4096, 4096 * extension, 360, n_hat)
    assert float(selection.mean_disturbance) == pytest.approx(authors_cost, rel=1e-4)
    assert 1e3 * authors_cost == pytest.approx(cost, abs=0.01)
    assert float(selection.threshold_low) == pytest.approx(gains[n_hat // 2], abs=4e-6)
    assert float(selection.threshold_high) == pytest.approx(gains[n_hat // 2 - 1], abs=4e-6)
    assert int(selection.interpolated_dimensions) == n_hat
    if n_hat == 80:
        assert np.flatnonzero(selection.winner).tolist() == PAIRS_8K_80
    threshold = float(selection.threshold_low)
    again = select_by_threshold(THETA, candidates, 4096, 4096 * extension, 360, threshold)
    np.testing.assert_array_equal(again.winner, selection.winner)


SMALL = dict(original=256, target=512, intervals=64)
SMALL_THETA = frequencies(10000.0, 32)
SMALL_CANDIDATES = np.stack(
    [
        np.asarray(vector.factors)
        for vector in (
            scaling.extrapolation(32),
            scaling.position_interpolation(32, 2),
            scaling.ntk(32, 2),
            scaling.yarn(10000.0, 32, 2, 256),
        )
    ]
)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 16))
def test_count_and_threshold_agree(pairs):
    by_count = select_by_count(SMALL_THETA, SMALL_CANDIDATES, **SMALL, n_hat=2 * pairs)
    assert int(by_count.interpolated_dimensions) == 2 * pairs
    low, high = float(by_count.threshold_low), float(by_count.threshold_high)
    assert low <= high
    low = max(low, 0.0)
    for threshold in (low, low + (min(high, 1.0) - low) / 2):
        if low < high:
            by_threshold = select_by_threshold(SMALL_THETA, SMALL_CANDIDATES, **SMALL, threshold=threshold)
            np.testing.assert_array_equal(by_threshold.winner, by_count.winner)
            np.testing.assert_array_equal(by_threshold.factors, by_count.factors)
    if 0 < high < np.inf:
        fewer = select_by_threshold(SMALL_THETA, SMALL_CANDIDATES, **SMALL, threshold=high)
        assert int(fewer.interpolated_dimensions) < 2 * pairs


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 1, width=32), st.floats(0, 1, width=32))
def test_fewer_leave_as_the_threshold_rises(first, second):
    low, high = sorted((first, second))
    eager = select_by_threshold(SMALL_THETA, SMALL_CANDIDATES, **SMALL, threshold=low)
    reluctant = select_by_threshold(SMALL_THETA, SMALL_CANDIDATES, **SMALL, threshold=high)
    left_eager, left_reluctant = np.asarray(eager.winner) > 0, np.asarray(reluctant.winner) > 0
    assert not (left_reluctant & ~left_eager).any()
    assert float(eager.threshold_low) <= low < float(eager.threshold_high)


@settings(deadline=None, max_examples=25)
@given(st.permutations(range(16)))
def test_pair_order_does_not_matter(order):
    order = np.array(order)
    straight = select_by_threshold(SMALL_THETA, SMALL_CANDIDATES, **SMALL, threshold=1e-3)
    shuffled = select_by_threshold(SMALL_THETA[order], SMALL_CANDIDATES[:, order], **SMALL, threshold=1e-3)
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
    selection = choose(candidates, measured, gain(measured) > np.float32(threshold), np.zeros(5, np.float32))
    for pair, column in enumerate(measured.T.tolist()):
        best_other = min(range(1, rows), key=column.__getitem__)
        winner = best_other if column[0] > column[best_other] + threshold else 0
        assert int(selection.winner[pair]) == winner
        assert float(selection.factors[pair]) == candidates[winner, pair]
        runner_up = min(column[row] for row in range(rows) if row != winner)
        assert float(selection.margin[pair]) == pytest.approx(runner_up - column[winner])


def test_equal_candidates_keep_the_default():
    candidates = np.repeat(SMALL_CANDIDATES[1:2], 3, axis=0)
    selection = select_by_threshold(SMALL_THETA, candidates, **SMALL, threshold=0.0)
    np.testing.assert_array_equal(selection.winner, 0)
    np.testing.assert_array_equal(selection.margin, 0)


def test_equal_gains_are_parted_in_order():
    measured = np.array([[0.5, 0.5, 0.5, 0.5], [0.0, 0.25, 0.25, 0.5]], np.float32)
    candidates = np.ones_like(measured)
    selection = choose(candidates, measured, np.array([True, True, False, False]), np.zeros(4, np.float32))
    assert float(selection.threshold_low) == float(selection.threshold_high) == 0.25


def test_ends_of_the_count():
    nobody = select_by_count(SMALL_THETA, SMALL_CANDIDATES, **SMALL, n_hat=0)
    everybody = select_by_count(SMALL_THETA, SMALL_CANDIDATES, **SMALL, n_hat=32)
    assert float(nobody.threshold_high) == np.inf and float(everybody.threshold_low) == -np.inf
    np.testing.assert_array_equal(nobody.factors, SMALL_CANDIDATES[0])
    assert int(everybody.winner.min()) > 0


def test_noise_floor_is_what_half_an_interval_does():
    def counts(theta, length, shift):
        share = np.arange(length) * theta / (2 * np.pi) * 64 - shift
        return np.bincount(np.floor(share).astype(int) % 64, minlength=64)

    theta = np.float64(SMALL_THETA)
    # Angles that lie on an edge may count on either side of it: the first, at 0, lies on none of a turned grid.
    floors = np.zeros(16)
    for row in np.float64(SMALL_CANDIDATES):
        for pair in range(16):
            values = []
            for shift in (0.0, 0.5):
                p = (counts(theta[pair], 256, shift) + PSEUDO_COUNT) / 256
                q = (counts(theta[pair] / row[pair], 512, shift) + PSEUDO_COUNT) / 512
                values.append((p * np.log(p / q)).sum())
            floors[pair] = max(floors[pair], abs(values[0] - values[1]))
    measured = noise_floor(Turns.create(SMALL_THETA), SMALL_CANDIDATES, **SMALL)
    np.testing.assert_allclose(measured, floors, rtol=1e-3, atol=1e-5)
    selection = select_by_threshold(SMALL_THETA, SMALL_CANDIDATES, **SMALL, threshold=0.0)
    np.testing.assert_array_equal(selection.noise_floor, measured)


def test_exact_and_float32_agree_where_float32_is_exact_enough():
    plain, exact = (
        select_by_threshold(theta, SMALL_CANDIDATES, **SMALL, threshold=0.02)
        for theta in (SMALL_THETA, Turns.create(SMALL_THETA))
    )
    np.testing.assert_allclose(plain.disturbance, exact.disturbance, atol=5e-3)
    np.testing.assert_array_equal(plain.winner, exact.winner)


def test_selection_is_a_pytree():
    measured = measure(SMALL_THETA, SMALL_CANDIDATES, **SMALL)
    thresholds, floor = np.array([0.0, 0.01, 0.1], np.float32), np.zeros(16, np.float32)
    sweep = jax.vmap(lambda threshold: choose(SMALL_CANDIDATES, measured, gain(measured) > threshold, floor))(
        thresholds
    )
    assert sweep.factors.shape == (3, 16)
    single = jax.tree.map(lambda leaf: leaf[1], sweep)
    expected = select_by_threshold(SMALL_THETA, SMALL_CANDIDATES, **SMALL, threshold=0.01)
    np.testing.assert_array_equal(single.winner, expected.winner)
    vector = expected.scale_vector
    assert isinstance(vector, ScaleVector) and float(vector.attention_factor) == 1
    np.testing.assert_array_equal(vector.factors, expected.factors)
    assert expected.winner.dtype == np.int32 and expected.factors.dtype == np.float32


def test_strict_dtype_promotion():
    with jax.numpy_dtype_promotion("strict"):
        selection = select_by_count(SMALL_THETA, SMALL_CANDIDATES, **SMALL, n_hat=8)
        assert int(selection.interpolated_dimensions) == 8
        assert selection.mean_disturbance.dtype == np.float32


@pytest.mark.parametrize(
    ("threshold", "named"),
    [(-1e-9, "solve.threshold"), (np.nan, "solve.threshold"), (np.inf, "solve.threshold")],
)
def test_unusable_threshold(threshold, named):
    with pytest.raises(InputError, match=f"^{named} is "):
        select_by_threshold(SMALL_THETA, SMALL_CANDIDATES, **SMALL, threshold=threshold)


@pytest.mark.parametrize("n_hat", [3, -2, 34, 8.0, None])
def test_unusable_count(n_hat):
    with pytest.raises(InputError, match=r"^solve\.n_hat is "):
        select_by_count(SMALL_THETA, SMALL_CANDIDATES, **SMALL, n_hat=n_hat)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"target": 256}, "context.target"),
        ({"target": 128}, "context.target"),
        ({"intervals": 1}, "angles.intervals"),
    ],
)
def test_unusable_measurement(changed, named):
    arguments = {**SMALL, **changed}
    with pytest.raises(InputError, match=f"^{named} is "):
        select_by_threshold(SMALL_THETA, SMALL_CANDIDATES, **arguments, threshold=0.0)
    with pytest.raises(InputError, match=f"^{named} is "):
        select_by_count(SMALL_THETA, SMALL_CANDIDATES, **arguments, n_hat=2)


@pytest.mark.parametrize(
    "candidates",
    [
        SMALL_CANDIDATES[:1],
        SMALL_CANDIDATES[0],
        SMALL_CANDIDATES[:, :8],
        np.zeros_like(SMALL_CANDIDATES),
        np.full_like(SMALL_CANDIDATES, np.nan),
    ],
)
def test_unusable_candidates(candidates):
    with pytest.raises(InputError, match=r"^solve\.candidates has "):
        select_by_threshold(SMALL_THETA, candidates, **SMALL, threshold=0.0)
