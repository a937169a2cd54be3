"""The robust selection against nearest distances in float64 NumPy, and the bounds it has to keep."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.rope.embedding import frequencies, identity
from rope_jax.rope.exact.turns import Turns, exact_frequencies
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import EXACT, FLOAT32, Measure
from rope_jax.rope.methods.dprope import DPRopeRobust
from rope_jax.rope.methods.interpolation import ntk
from rope_jax.rope.unseen import unseen_mass
from tests.rope.golden import keep_or_interpolate

RESOLUTION = DPRopeRobust().resolution
# base, head dimension, original and target context
SETTINGS = [
    (10000.0, 128, 4096, 8192),
    (10000.0, 128, 4096, 16384),
    (500000.0, 128, 8192, 32768),
    (500000.0, 64, 8192, 32768),
    (10000.0, 32, 128, 256),
    (10000.0, 32, 128, 512),
]


def chosen(setting, resolution=RESOLUTION):
    base, head_dim, original, target = setting
    candidates = keep_or_interpolate(head_dim, target / original)
    kept, interpolated = unseen_mass(
        Turns.create(frequencies(base, head_dim)), candidates, Measure(original, target), resolution
    )
    return np.asarray(kept > interpolated)


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_has_turned_is_kept_and_what_has_not_is_interpolated(setting):
    base, head_dim, original, target = setting
    theta = base ** -(np.arange(0, head_dim, 2) / head_dim)
    turns = original * theta / (2 * np.pi)
    interpolated = chosen(setting)
    assert not interpolated[turns > 8].any()
    grows = (target - original) * theta > RESOLUTION
    assert interpolated[(turns < 0.7) & grows].all()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("change", [0.5, 2.0])
def test_hardly_moves_with_the_resolution(setting, change):
    assert (chosen(setting) ^ chosen(setting, change * RESOLUTION)).sum() <= 2


def test_cuts_at_the_first_pair_that_completes_no_turn():
    # The pairs at which the rule was found to cut when it was proposed.
    for setting, first in ((SETTINGS[0], 46), (SETTINGS[1], 46), (SETTINGS[2], 36), (SETTINGS[5], 6)):
        np.testing.assert_array_equal(np.flatnonzero(chosen(setting)), np.arange(first, setting[1] // 2))


@settings(deadline=None, max_examples=25)
@given(st.integers(16, 200), st.floats(1.1, 6), st.floats(0.02, 0.3), st.floats(100, 1e6))
def test_mass_by_nearest_distances(original, extension, resolution, base):
    target = int(original * extension) + 1
    theta = base ** -(np.arange(0, 16, 2) / 16)
    candidates = np.stack([np.ones(8), np.full(8, target / original), ntk(16, extension).factors])
    measured = unseen_mass(exact_frequencies(base, 16), candidates, Measure(original, target), resolution)
    for row, factors in enumerate(candidates.astype(np.float32).astype(np.float64)):
        for pair in range(8):
            width = min(max(resolution, theta[pair]), (original - 1) * theta[pair] / 4)
            seen = theta[pair] * np.arange(original)
            moved = theta[pair] / factors[pair] * np.arange(target)
            nearest = np.abs(np.angle(np.exp(1j * (moved[:, None] - seen)))).min(axis=1)
            # Angles within rounding of the resolution may count either way.
            low, high = (np.mean(nearest > width + slack) for slack in (2e-6, -2e-6))
            assert low - 1e-6 <= float(measured[row, pair]) <= high + 1e-6


@pytest.mark.slow
def test_the_method_chooses_by_mass_and_reports_disturbance():
    base, head_dim, original, target = SETTINGS[4]
    geometry = Geometry(base, head_dim, identity(head_dim))
    for arithmetic in (FLOAT32, EXACT):
        measure = Measure(original, target, intervals=90, arithmetic=arithmetic)
        found = DPRopeRobust()(geometry, measure).selection
        np.testing.assert_array_equal(np.asarray(found.winner) > 0, chosen(SETTINGS[4]))
        assert found.disturbance.shape == (2, 16)
        low, high = found.thresholds.tolist()
        assert 0 <= low <= high <= 1
