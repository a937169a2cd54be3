"""What is kept of a measurement, against the model's own logits in float64."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from rope_jax.data.recall import Symbols
from rope_jax.errors import InputError
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import Llama, init_params
from rope_jax.rope.embedding import ScaleVector
from rope_jax.study.probes import ProbeSizes, make_probes, measure, ratio

SYMBOLS = Symbols(64, 16, 3)
CONFIG = LlamaConfig(128, 16, 32, 1, 1, 1, 8, tie_embeddings=True, initializer_range=0.5)
SIZES = ProbeSizes(windows=2, facts=2, asked=3)


@pytest.fixture(scope="module")
def probes():
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 60, size, dtype=np.int32) for size in (900, 100, 1200)]
    return make_probes(documents, (64, 128), SYMBOLS, 60, SIZES)


def test_rows(probes):
    assert probes.rows.shape == (2 * 2 + 2 + 3 + 3, 128) and (probes.rows[:, 0] == 60).all()
    # The second document is shorter than a window.
    np.testing.assert_array_equal(probes.documents, [0, 0, 2, 2])
    assert not np.isin(probes.rows[:4], SYMBOLS.all).any()
    assert (probes.distances[2:] > 64).any(axis=1).all() and probes.distances.max() < 128
    with pytest.raises(InputError) as caught:
        make_probes([np.zeros(100, np.int32)], (64, 128), SYMBOLS, 60, SIZES)
    assert caught.value.field == "documents"


def test_measurement(probes):
    params = nn.unbox(init_params(CONFIG, jax.random.key(0)))
    rope = ScaleVector.create([1, 1, 2, 2], 1.1)
    found = measure(params, CONFIG, rope, probes)
    logits = np.asarray(Llama(CONFIG).apply({"params": params}, probes.rows, rope), np.float64)[:, :-1]
    targets = probes.rows[:, 1:]
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    nll = -np.log(np.take_along_axis(shares, targets[..., None], axis=-1)[..., 0])
    hits = shares.argmax(axis=-1) == targets
    # Five digits are kept, and the logits are float32.
    close = {"rtol": 2e-4, "atol": 2e-4}

    by_position = [nll[:4, max(first - 1, 0) : first + 7].mean() for first in range(0, 128, 8)]
    np.testing.assert_allclose(found["position"], by_position, **close)
    expected = [
        [nll[rows, a - 1 : b - 1].mean() for a, b in ((1, 32), (32, 64), (64, 128), (96, 128))]
        for rows in ([0, 1], [2, 3])
    ]
    np.testing.assert_allclose(found["documents"], expected, **close)
    for kind, rows, distances in (("facts", [4, 5], probes.distances[:2]), ("asked", [6, 7, 8], probes.distances[2:])):
        distances = distances[:, 1:]
        far = distances > 64
        np.testing.assert_array_equal(np.array(found[kind]["count"]["rows"])[:, 1], far.sum(axis=1))
        np.testing.assert_array_equal(np.array(found[kind]["hits"]["rows"])[:, 1], (hits[rows] & far).sum(axis=1))
        np.testing.assert_allclose(np.array(found[kind]["nll"]["rows"])[:, 1], (nll[rows] * far).sum(axis=1), **close)
        bins = [nll[rows][(distances > i) & (distances <= i + 16)].sum() for i in range(0, 128, 16)]
        np.testing.assert_allclose(found[kind]["nll"]["distance"], bins, **close)
    far = probes.distances[2:, 1:] > 64
    np.testing.assert_allclose(np.array(found["asked"]["without"]["rows"])[:, 1], (nll[9:] * far).sum(axis=1), **close)
    np.testing.assert_allclose(ratio(found["asked"], "count"), 1)
