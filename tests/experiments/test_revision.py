"""The commit of a model from the hub: asked for, taken, recorded and kept."""

import json

from configs import defaults
from rope_jax.cli import build
from rope_jax.commands.cards import provenance
from rope_jax.commands.run import Corpus, Recipe
from rope_jax.rope.measure import Measure
from tests.interop.references import write_random_llama

COMMIT = "0123456789" * 4


def test_a_resumed_run_takes_the_commit_that_it_began_with(tmp_path, monkeypatch):
    snapshot = write_random_llama(tmp_path / "cache" / "snapshots" / COMMIT)
    asked = []
    monkeypatch.setattr(build, "resolve_model", lambda path, revision: asked.append((path, revision)) or snapshot)
    config = defaults.get_config()
    config.model.path, config.model.revision = "a/model", "main"
    source = build.source(config, tmp_path / "run")
    assert (source.commit, source.name) == (COMMIT, "a/model")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "source.json").write_text(json.dumps({"path": "a/model", "commit": COMMIT}))
    build.source(config, tmp_path / "run")
    assert asked == [("a/model", "main"), ("a/model", COMMIT)]
    recipe = Recipe(source, build.geometry(source.known), Measure(128, 256), {}, {}, Corpus("text_folder", "", "test"))
    assert provenance(recipe, "pi", 0)["source_commit"] == COMMIT
