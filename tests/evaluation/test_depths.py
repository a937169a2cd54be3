"""Grids of length and depth, and the average of what was run."""

from rope_jax.evaluation.intervals import wilson
from rope_jax.evaluation.ruler.benchmark import Ruler
from rope_jax.evaluation.sample import Sample
from rope_jax.evaluation.scores import average_of_run, depth_grids, score_table


def sample(index, depth, length=8, task="t"):
    return Sample(
        f"{task}/{length}/{index}", task, "x" * 50 + "key" + "x" * 47, ("key",), 4, length, details={"depth": depth}
    )


def test_grid_counts_samples_where_they_lie():
    samples = [sample(0, 0.0), sample(1, 0.24), sample(2, 0.25), sample(3, 1.0), sample(4, 0.6, length=16)]
    scores = {s.id: float(i % 2) for i, s in enumerate(samples)}
    grid = depth_grids(samples, scores, lambda s: s.details["depth"], bins=4)["t"]
    assert grid["lengths"] == [8, 16] and grid["depths"] == [0.125, 0.375, 0.625, 0.875]
    assert grid["mean"] == [[50.0, 0.0, None, 100.0], [None, None, 0.0, None]]
    assert grid["samples"] == [[2, 1, 0, 1], [0, 0, 1, 0]]
    low, high = grid["interval"][0][0]
    assert (low / 100, high / 100) == wilson(1, 2)


def test_depth_of_a_reference_is_its_place_in_the_prompt():
    assert Ruler().depth(sample(0, None)) == 0.5
    several = Sample("t", "t", "a b", ("a", "b"), 4, 8)
    absent = Sample("t", "t", "a b", ("c",), 4, 8)
    assert Ruler().depth(several) is None and Ruler().depth(absent) is None
    assert depth_grids([several], {"t": 1.0}, Ruler().depth) == {}


def test_average_of_what_was_run_stands_beside_the_missing_average():
    samples = [sample(0, 0, task="t"), sample(0, 0, task="u"), sample(0, 0, 16, "t"), sample(0, 0, 16, "u")]
    scores = dict(zip((s.id for s in samples), (1.0, 0.0, 1.0, 1.0)))
    whole = score_table(samples, scores, ["t", "u"])
    assert average_of_run(whole) == whole
    table = average_of_run(score_table(samples, scores, ["t", "u", "v"]))
    assert table["average"]["8"].mean is None
    # Over the same two tasks it is their average.
    assert table["average of those run"] == whole["average"]
    single = score_table(samples[:1], scores)
    assert average_of_run(single) == single
