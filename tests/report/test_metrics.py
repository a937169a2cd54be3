"""Metrics on disk survive crashes and resumes."""

import json

import pytest

from rope_jax.report.metrics import MetricsWriter, read_metrics


def steps(folder):
    return [row["step"] for row in read_metrics(folder / "metrics.jsonl")]


def test_resumed_steps_stand_once(tmp_path):
    with MetricsWriter(tmp_path, 0) as metrics:
        for step in range(1, 6):
            metrics.write(step, {"loss": 1.0 / step})
    with MetricsWriter(tmp_path, 3) as metrics:
        assert steps(tmp_path) == [1, 2, 3]
        metrics.write(4, {"loss": 0.5})
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert list((tmp_path / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("rest", [b'{"step": 2, "lo', b"[]\n", b"{}\n", b'{"step": "\xff"}\n', b"[" * 9999])
def test_a_damaged_line_and_what_follows_are_left_out(tmp_path, rest):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(json.dumps({"step": 1, "loss": 2.0}).encode() + b"\n" + rest)
    assert steps(tmp_path) == [1]
    with MetricsWriter(tmp_path, 1) as metrics:
        metrics.write(2, {"loss": 1.5})
    assert steps(tmp_path) == [1, 2]
