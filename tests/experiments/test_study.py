"""The study: from texts to a page, resumed, and refused with a clear message."""

import json

import pytest

from rope_jax.cli.config import start
from rope_jax.cli.study import study
from rope_jax.commands.reporter import Silent
from rope_jax.errors import InputError


def small(texts):
    """`configs/study.py` in seconds."""
    config = start("study")
    config.data.path = str(texts)
    config.rope.head_dim = 16
    config.angles.intervals = 16
    config.model.attention_chunk = 64
    config.pretrain.warmup_steps = 1
    config.learn.steps = 1
    config.mesh.data, config.mesh.fsdp = 8, 1
    s = config.study
    s.models = ("1x32:32:1024",)
    s.seeds = 1
    s.extensions, s.shares = (2,), (0.5,)
    s.methods, s.zero_shot, s.n_hats, s.intervals, s.random = ("yarn", "extrapolation", "learned"), (), (), (), 2
    s.vocab_size, s.recall_keys, s.recall_values = 300, 4, 3
    s.batch_tokens, s.tune_batch_tokens, s.tune_share = 256, 512, 0.5  # a row or more for each of eight devices
    s.recall_rows = 1
    return config


@pytest.mark.slow
def test_from_texts_to_a_page_and_resumed(texts, tmp_path, monkeypatch):
    config = small(texts)
    lines = study(config, tmp_path, "small", Silent())
    assert [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()] == lines
    measured = [line for line in lines if line["kind"] == "measured"]
    zero_shot = {line["vector"] for line in measured if line["stage"] == "zero_shot"}
    assert zero_shot == {"yarn", "extrapolation", "learned", "ramp 0", "mask 1"}
    tuned = [line for line in measured if line["stage"] in ("tuned", "skipped")]
    assert len(tuned) == 6 and {line["tokens"] for line in tuned} == {512}
    (model,) = (line for line in lines if line["kind"] == "model")
    assert model["tokens"] == 1024 and len(model["losses"]) == 4 and len(model["energy"]) == 8
    assert not (tmp_path / "models/1x32-32-0/checkpoints").exists()
    assert "zero-shot" in (tmp_path / "report.md").read_text()

    # A record that is missing is made again, to the same numbers; no other is.
    (tmp_path / "models/1x32-32-0/2/skipped/yarn.json").unlink()
    for name in ("pretrain", "learn_vector", "vector_record", "train_subword"):
        if name != "pretrain":
            monkeypatch.setattr(
                f"rope_jax.commands.study.{name}", lambda *_, name=name: pytest.fail(f"{name} ran again")
            )
    again = study(config, tmp_path, "small", Silent())
    for new, old in zip(again[1:], lines[1:], strict=True):
        assert {**new, "seconds": 0} == {**old, "seconds": 0}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("models", ("big",)),
        ("models", ("1x40:32:1024",)),
        ("tune_batch_tokens", 64),
        ("methods", ("yarn", "nothing")),
        ("shares", (0.5, 0.5)),
        ("n_hats", (18,)),
        ("intervals", (0,)),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_made(texts, tmp_path, field, value):
    config = small(texts)
    with config.unlocked(), config.study.ignore_type():
        config.study[field] = value
    with pytest.raises(InputError) as caught:
        study(config, tmp_path / "run", "small", Silent())
    assert caught.value.field == f"config.study.{field}"
    assert not (tmp_path / "run/config.json").exists()
