"""Which vector an engine applies: transformers itself, right and with configs that it is made to misread."""

import functools
import importlib
import json
import shutil

import numpy as np
import pytest

from rope_jax.cli.verify import probe, verify
from rope_jax.commands import verify as procedure
from rope_jax.commands.reporter import Silent
from rope_jax.data.byte_tokenizer import ByteTokenizer
from rope_jax.errors import InputError
from rope_jax.interop.engine_worker import by_transformers
from rope_jax.interop.gguf_export import write_gguf
from rope_jax.interop.hf_config import read_config
from rope_jax.interop.verify import VerificationError
from tests.interop.references import quiet_transformers, write_random_llama

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def config_of(folder, **engine):
    config = importlib.import_module("configs.verify").get_config()
    config.model.path, config.model.attention_chunk = str(folder), 128
    config.engine.update({"tokens": 48} | engine)
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model for 64 tokens, extended to 256 by somebody else's YaRN."""
    folder = tmp_path_factory.mktemp("verify") / "a"
    parameters = YARN | {"rope_theta": 500000.0}
    write_random_llama(folder, vocab_size=258, hidden_size=64, max_position_embeddings=256, rope_parameters=parameters)
    ByteTokenizer().save(folder)
    return folder


def misread(folder, place, **parameters):
    """The model as an engine computes it that takes these for its rope parameters."""
    shutil.copytree(folder, place)
    raw = json.loads((place / "config.json").read_text())
    raw["rope_parameters"] = {"rope_theta": 500000.0} | parameters
    (place / "config.json").write_text(json.dumps(raw))
    return place


@functools.cache
def ours(folder):
    question = probe(config_of(folder), folder.parent)
    return procedure.scores(question, procedure.candidates(question.own, question.model, question.original))


def asked(folder, asked_of):
    """What is found when the model of `folder` is served as that of another folder."""
    question = probe(config_of(folder), folder.parent)
    job = {"model": str(asked_of), "tokens": question.tokens.tolist(), "columns": question.columns.tolist()}
    with quiet_transformers():
        version, [theirs] = by_transformers([job])
    assert version.startswith("transformers 5")
    return procedure.compare(question, ours(folder), np.asarray(theirs), Silent())


@pytest.mark.parametrize(
    ("parameters", "applied"),
    [
        (YARN, procedure.OWN),
        ({"rope_type": "default"}, "plain RoPE: the scaling is ignored"),
        ({"rope_type": "linear", "factor": 4.0}, "linear by 4"),
        (
            {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            "LLaMA-3's formula by 4",
        ),
        (YARN | {"attention_factor": 1.0}, "without the attention factor"),
        (YARN | {"rope_theta": 10000.0}, None),
        ({"rope_type": "default", "rope_theta": 3000.0}, None),
    ],
    ids=lambda value: str(value)[:60],
)
def test_the_vector_that_is_applied_is_found(folder, tmp_path, parameters, applied):
    found = asked(folder, misread(folder, tmp_path / "b", **parameters))
    assert found["applied"] == applied
    rows = found["vectors"]
    # float32 sums in another order.
    if applied:
        assert max(rows[applied]["below"], rows[applied]["above"]) < 1e-4
    assert found["indistinct"] == []


@pytest.mark.slow
def test_the_command(folder, tmp_path, monkeypatch):
    """In a process of its own, as any environment's interpreter would run it, wherever it works."""
    monkeypatch.chdir(folder.parent)
    result = verify(config_of(folder.name), tmp_path, "verify", Silent())
    assert json.loads((tmp_path / "engine.json").read_text()) == result
    assert result["applied"] == procedure.OWN and result["engine"].startswith("transformers")
    with pytest.raises(InputError, match=r"config\.engine\.python.* is /none") as error:
        verify(config_of(folder, python="/none"), tmp_path, "verify", Silent())
    assert error.value.field == "config.engine.python"
    with pytest.raises(InputError, match=r"serves a \.gguf file"):
        verify(config_of(folder, name="llama.cpp"), tmp_path, "verify", Silent())


def test_another_vector_is_an_error(folder, tmp_path, monkeypatch):
    plain = misread(folder, tmp_path / "b", rope_type="default")
    question = probe(config_of(folder), tmp_path)
    job = {"model": str(plain), "tokens": question.tokens.tolist(), "columns": question.columns.tolist()}
    theirs = np.asarray(by_transformers([job])[1][0])
    monkeypatch.setattr(procedure, "ask", lambda *_: ("engine 1", [theirs]))
    with pytest.raises(VerificationError, match=r"engine 1 applies plain RoPE.*nats per token; the model's own is"):
        procedure.verify(question, "vllm", "", tmp_path, Silent())
    monkeypatch.setattr(procedure, "ask", lambda *_: ("engine 1", [theirs * np.nan]))
    with pytest.raises(VerificationError, match="no scale vector that is known here"):
        procedure.verify(question, "vllm", "", tmp_path, Silent())
    monkeypatch.setattr(procedure, "ask", lambda *_: ("engine 1", ["ValueError: longrope"]))
    with pytest.raises(InputError, match=r"refuses .*: ValueError: longrope"):
        procedure.verify(question, "vllm", "", tmp_path, Silent())


def test_llama_cpp_gives_the_probabilities_of_given_tokens(folder, tmp_path):
    """In this process, which ends after it; the server's threads do not mind."""
    pytest.importorskip("xllamacpp")
    rope = read_config(folder).rope
    write_gguf(tmp_path / "a.gguf", folder, rope, context=256, provenance={"original_context": 64})
    result = verify(config_of(tmp_path / "a.gguf", name="llama.cpp"), tmp_path, "verify", Silent())
    assert result["applied"] == procedure.OWN
    assert result["vectors"][procedure.OWN]["largest"] < 1e-3


def test_columns_lie_on_both_sides_of_the_original_context():
    assert procedure.columns(64, 256, 48).tolist() == list(range(16, 112))
    assert procedure.columns(64, 64, 48).tolist() == list(range(16, 64))
    assert procedure.columns(8, 12, 48).tolist() == list(range(1, 12))
