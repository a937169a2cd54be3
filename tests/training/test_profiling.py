"""Traces hold the steps that were asked for."""

import pytest

from rope_jax.training.profiling import Profile, traced


@pytest.fixture
def calls(monkeypatch):
    seen = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder, profiler_options: seen.append("start"))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: seen.append("stop"))
    return seen


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (1, [1, 2, "start", 3, 4, "wait", "stop", 5]),
        (4, ["start", 4, "wait", "stop", 5]),  # resumed within
        (5, [5]),  # resumed after
    ],
)
def test_traces_the_steps_asked_for(tmp_path, calls, start, expected):
    for step in traced(range(start, 6), Profile(tmp_path, 3, 4), lambda: calls.append("wait")):
        calls.append(step)
    assert calls == expected


def test_a_loop_that_is_left_stops_the_trace(tmp_path, calls):
    steps = traced(range(1, 6), Profile(tmp_path, 2, 4), lambda: None)
    with pytest.raises(KeyboardInterrupt):
        for step in steps:
            if step == 3:
                raise KeyboardInterrupt
    steps.close()
    assert calls == ["start", "stop"]
