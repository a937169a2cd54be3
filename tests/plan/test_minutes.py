"""Stages and their minutes as text."""

import pytest

from rope_jax.plan.minutes import Stage, described


def test_minutes_are_work_by_speed():
    stages = [Stage("passkey", 4, 6e11), Stage("export", 1, None, "3 MB"), Stage("perplexity", 0, 1e12)]
    head, passkey, export = described(stages, lambda: 1e10).splitlines()
    assert "about 4.0 minutes at 10 GFLOP/s" in head
    assert passkey.split() == ["passkey", "4", "x", "1.0", "=", "4.0", "min"]
    assert export.split() == ["export", "3", "MB"] and len(export) == len(passkey)


def test_nothing_is_timed_for_what_is_done_or_takes_seconds():
    def never():
        pytest.fail("timed")

    assert described([Stage("fine-tuning", 0, 1.0)], never) == ""
    assert "less than a minute" in described([Stage("fine-tuning", 1, 1e10)], never)
    assert "not estimated" in described([Stage("leaderboard", 1, None, "not estimated")], never)
