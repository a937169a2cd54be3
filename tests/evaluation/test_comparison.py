"""Paired differences of methods: against SciPy's bootstrap, and on models whose difference is known."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats

from rope_jax.evaluation.comparison import compare_perplexities, compare_scores, paired_difference, regions
from rope_jax.evaluation.perplexity.positions import perplexity_by_position
from rope_jax.evaluation.perplexity.sliding import perplexity
from rope_jax.evaluation.sample import Sample


def test_intervals_are_those_of_scipys_bootstrap():
    """Documents differ by nats and methods by hundredths."""
    rng = np.random.default_rng(0)
    documents, weights = rng.normal(3.0, 1.0, 12), rng.integers(500, 900, 12).astype(float)
    ours, theirs = ((documents + rng.normal(shift, 0.01, 12)) * weights for shift in (0.02, 0.0))
    found = paired_difference(ours, theirs, weights)
    assert found.units == 12 and found.difference == pytest.approx((ours - theirs).sum() / weights.sum())
    want = scipy.stats.bootstrap(
        (ours - theirs, weights),
        lambda a, w, axis: a.sum(axis) / w.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    # Ends of 1,000 resamples have a standard error of some 8% of the standard error they bound.
    error = (want.high - want.low) / 4
    np.testing.assert_allclose(found.interval, want, atol=0.3 * error)
    assert 0 < found.interval[0] < found.interval[1] < 0.04
    assert found == paired_difference(np.append(ours, 7.0), np.append(theirs, 0.0), np.append(weights, 0.0))
    assert paired_difference(ours[:1], theirs[:1], weights[:1]).interval is None
    assert paired_difference([], [], []).difference is None


def test_a_model_that_is_worse_far_in_the_window_is_so_by_region():
    window, original = 64, 16
    documents = [np.arange(n, dtype=np.int32) for n in (70, 130, 200)]

    def model(extra):
        places = np.arange(window)
        # Columns hold the NLL of the next token.
        return lambda tokens, wanted: np.where(wanted, 2.0 + extra * (places[: tokens.shape[1]] + 1 >= original), 0.0)

    def records(extra):
        common = {"bos_id": 1, "batch_size": 4}
        edges = (1, 8, original, 32, 48, window)
        found = {
            "64 token": perplexity(model(extra), documents, window, 16, **common),
            "by_position": perplexity_by_position(model(extra), documents, window, edges=edges, **common),
        }
        return json.loads(json.dumps({name: dataclasses.asdict(record) for name, record in found.items()}))

    found = json.loads(json.dumps(compare_perplexities(records(0.5), records(0.0), original)))
    assert {name: (place["start"], place["end"]) for name, place in found["regions"].items()} == {
        "short": (1, 16),
        "beyond": (16, 64),
        "long": (48, 64),
    }
    for place in (*found["regions"].values(), *found["by_position"]):
        want = 0.5 if place["start"] >= original else 0.0
        # float64 sums of a few hundred NLLs.
        np.testing.assert_allclose([place["difference"], *place["interval"]], want, atol=1e-9)
        assert place["units"] == 3
    # Each token is scored once; those of the first 15 positions of a document are alike.
    tokens = sum(map(len, documents))
    assert found["64 token"]["difference"] == pytest.approx(0.5 * (tokens - 3 * 15) / tokens)


def test_the_last_tokens_are_apart_in_long_windows():
    far = {"beyond": (4096, 8192), "long": (6144, 8192), "last": (7692, 8192)}
    assert regions(8192, 4096) == {"short": (1, 4096), **far}
    assert regions(64, 128) == {"short": (1, 64), "long": (48, 64)}


def test_scores_are_compared_sample_by_sample_and_tasks_weigh_alike():
    samples = [
        Sample(f"{task}{i}", task, "", ("",), 1, 8) for task, count in (("a", 4), ("b", 1)) for i in range(count)
    ]
    theirs = {sample.id: 0.0 for sample in samples}
    ours = {**theirs, "a0": 1.0, "a1": 1.0, "b0": 0.5}
    (cell,) = compare_scores([(sample, "8") for sample in samples], ours, theirs).values()
    assert (cell["difference"], cell["units"], cell["interval"]) == (50.0, 5, None)
    (cell,) = compare_scores([(sample, "8") for sample in samples[:4]], ours, theirs).values()
    assert cell["difference"] == 50.0 and cell["interval"][0] < 50 < cell["interval"][1]
