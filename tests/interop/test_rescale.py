"""A folder with another scale vector holds the source's bytes; only the config differs."""

import subprocess

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from rope_jax.errors import InputError
from rope_jax.interop import new_folder
from rope_jax.interop.huggingface import read_model, write_model
from rope_jax.interop.new_folder import rescale_folder
from rope_jax.rope.embedding import ScaleVector
from tests.interop.references import reference_logits, write_random_llama
from tests.interop.test_llama_logits import TOLERANCE, our_logits, random_tokens
from tests.interop.test_round_trip import stored_bytes

FACTORS = np.linspace(1, 4, 6, dtype=np.float32)


def extend(source, target, rope=None, **changes):
    arguments = {"context": 512, "provenance": {"method": "none"}} | changes
    rescale_folder(source, target, ScaleVector.create(FACTORS) if rope is None else rope, **arguments)


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_the_same_export_as_through_the_model(tmp_path, shard):
    source = write_random_llama(tmp_path / "in", torch.bfloat16, shard, pad_token_id=3)
    (source / "tokenizer_config.json").write_text('{"model_max_length": 128}')
    rope = ScaleVector.create(FACTORS, 1.1386)
    seen = []
    extend(source, tmp_path / "out", rope, progress=lambda done, total: seen.append((done, total)))
    model = read_model(source)
    write_model(
        tmp_path / "long",
        model.config,
        model.params,
        rope,
        context=512,
        provenance={"method": "none"},
        source=source,
        max_shard_bytes=20_000 if shard == "20KB" else 10**9,
    )
    assert stored_bytes(tmp_path / "out") == stored_bytes(tmp_path / "long")
    for name in ("config.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "long" / name).read_text()
    for file in source.glob("model*.safetensors"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "out", check=True)
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))


def test_logits_equal_transformers(tmp_path):
    source = write_random_llama(tmp_path / "in")
    rope = ScaleVector.create(FACTORS, 1.2)
    extend(source, tmp_path / "out", rope)
    model = read_model(source)
    for length in (32, 600):
        tokens = random_tokens(length)
        ours = our_logits(model.config, model.params, rope, tokens)
        np.testing.assert_allclose(ours, reference_logits(tmp_path / "out", tokens), **TOLERANCE)


def test_weights_of_any_dtype_mixture_and_old_buffers_are_carried(tmp_path):
    source = write_random_llama(tmp_path / "in")
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float16)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.full(6, 7.0, np.float32)
    save_file(tensors, source / "model.safetensors")  # and without the mark that loaders ask for
    extend(source, tmp_path / "out")
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        np.testing.assert_array_equal(tensor, tensors[name], strict=True)
    assert reference_logits(tmp_path / "out", random_tokens(8)).shape == (1, 8, 96)


def test_extending_twice(tmp_path):
    source = write_random_llama(tmp_path / "in")
    extend(source, tmp_path / "once")
    extend(tmp_path / "once", tmp_path / "twice", ScaleVector.create(2 * FACTORS), context=1024)
    assert stored_bytes(tmp_path / "twice") == stored_bytes(source)
    np.testing.assert_array_equal(read_model(tmp_path / "twice").rope.factors, 2 * FACTORS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope": ScaleVector.create(np.arange(1, 13).reshape(2, 6))}, "factors of `rope` differ from layer to layer"),
        ({"rope": ScaleVector.create(np.ones(5))}, r"factors of `rope` have shape \[5\]"),
        ({"context": 0}, "`context` is 0"),
        ({"provenance": {"vector": np.ones(3)}}, "`provenance` cannot be written as JSON"),
    ],
)
def test_refused(tmp_path, changes, message):
    source = write_random_llama(tmp_path / "in")
    with pytest.raises(InputError, match=message) as error:
        extend(source, tmp_path / "a" / "out", **changes)
    assert error.value.field in changes
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_source_is_never_replaced(tmp_path):
    source = write_random_llama(tmp_path / "in")
    (tmp_path / "link").symlink_to(source)
    for target in (source, tmp_path / "link", tmp_path):
        with pytest.raises(InputError, match="holds the source model"):
            extend(source, target, overwrite=True)
    with pytest.raises(InputError, match=r"`source` .* is not a folder"):
        extend(tmp_path / "nowhere", tmp_path / "out")


def test_a_file_that_shrinks_leaves_nothing_behind(tmp_path, monkeypatch):
    source = write_random_llama(tmp_path / "in")
    file = source / "model.safetensors"
    monkeypatch.setattr(new_folder, "check_space", lambda *_: file.write_bytes(file.read_bytes()[:-4]))
    with pytest.raises(InputError):
        extend(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
