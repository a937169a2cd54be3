"""The noise floor against float64 NumPy on a shifted grid."""

import numpy as np

from rope_jax.rope.embedding import frequencies
from rope_jax.rope.measure import PSEUDO_COUNT, Measure
from rope_jax.rope.methods.by_parts import yarn
from rope_jax.rope.methods.interpolation import ntk
from rope_jax.rope.noise import noise_floor
from tests.rope.golden import keep_or_interpolate

THETA = frequencies(10000.0, 32)
CANDIDATES = np.stack([*keep_or_interpolate(32, 2), ntk(32, 2).factors, yarn(10000.0, 32, 2, 256).factors])


def test_noise_floor_is_what_half_an_interval_does():
    def counts(theta, length, shift):
        share = np.arange(length) * theta / (2 * np.pi) * 64 - shift
        return np.bincount(np.floor(share).astype(int) % 64, minlength=64)

    theta = np.float64(THETA)
    # Angles that lie on an edge may count on either side of it: the first, at 0, lies on none of a shifted grid.
    floors = np.zeros(16)
    for row in np.float64(CANDIDATES):
        for pair in range(16):
            values = []
            for shift in (0.0, 0.5):
                p = (counts(theta[pair], 256, shift) + PSEUDO_COUNT) / 256
                q = (counts(theta[pair] / row[pair], 512, shift) + PSEUDO_COUNT) / 512
                values.append((p * np.log(p / q)).sum())
            floors[pair] = max(floors[pair], abs(values[0] - values[1]))
    measured = noise_floor(THETA, CANDIDATES, Measure(256, 512, intervals=64))
    np.testing.assert_allclose(measured, floors, rtol=1e-3, atol=1e-5)
