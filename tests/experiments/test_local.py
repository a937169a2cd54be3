"""`configs/local.py` on a real pre-trained model and real books."""

import importlib
import shutil

import jax
import numpy as np
import pytest

from rope_jax.cli.extend import extend
from rope_jax.commands.reporter import Silent
from rope_jax.interop.huggingface import check_model
from rope_jax.sharding import make_mesh
from tests.interop.stories import write_stories260k


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_stories260k_on_books(shared, tmp_path, monkeypatch):
    config = importlib.import_module("configs.local").get_config()
    config.model.path = str(write_stories260k(shared / "data", tmp_path / "stories"))
    for book in ("train/Ford_Girl_1907.txt", "validation/Haggard_Mines_1885.txt"):
        copied = tmp_path / "books" / book
        copied.parent.mkdir(parents=True)
        shutil.copy(shared / "data/books" / book, copied)
    config.data.path = str(tmp_path / "books")
    config.compare = ("extrapolation",)
    config.train.steps = 2
    config.train.global_batch, config.train.accumulation = 2, 1
    config.eval.max_tokens = 2_000
    config.eval.position_tokens = 2_000
    config.eval.stride = 512
    config.eval.passkey_trials = 2
    # Cutting a model this small over eight virtual devices would take longer than computing it.
    monkeypatch.setattr("rope_jax.cli.extend.make_mesh", lambda **sizes: make_mesh(**sizes, devices=jax.devices()[:1]))
    config.lock()
    results = extend(config, tmp_path / "run", "local", reporter=Silent())
    assert list(results["methods"]) == ["dprope", "extrapolation"]
    for method in results["methods"].values():
        buckets = method["after"]["by_position"]["buckets"]
        assert buckets[-1]["end"] == 1024
        assert np.all(np.isfinite([bucket["perplexity"] for bucket in buckets]))
        assert method["after"]["passkey"]["lengths"] == [512, 1024]
    # The model knows stories and reads novels: within its window it is far better than guessing 512 tokens.
    assert results["methods"]["extrapolation"]["before"]["perplexity"]["512"]["perplexity"] < 128
    exported = check_model(tmp_path / "run/export")
    assert exported.config.context == 1024
    np.testing.assert_array_equal(exported.rope.factors, np.float32(results["methods"]["dprope"]["scale"]["factors"]))
