"""Our logits against transformers', for models in and for exports out."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from rope_jax.interop.huggingface import check_model, read_model, write_model
from rope_jax.model.llama import Llama
from rope_jax.rope.embedding import ScaleVector, identity
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods import METHODS
from rope_jax.rope.methods.adjusted import Adjusted
from rope_jax.rope.methods.by_parts import yarn
from rope_jax.rope.relative import compose
from tests.interop.references import quiet_transformers, reference_logits, write_random_llama
from tests.interop.test_round_trip import stored_bytes

# Two float32 implementations that sum in different orders; logits are of order 1 to 10.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def our_logits(config, params, rope, tokens):
    # One large chunk compiles fastest; chunking itself is tested with the model.
    config = dataclasses.replace(config, attention_chunk=1024)
    return np.asarray(jax.jit(Llama(config).apply)({"params": params}, tokens, rope), np.float32)


def random_tokens(length, vocabulary=96, seed=0):
    return np.random.default_rng(seed).integers(0, vocabulary, (1, length), np.int32)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1], ids=["mha", "gqa", "mqa"])
def test_logits_equal_transformers_plain_and_extended(tmp_path, kv_heads, tied):
    folder = write_random_llama(tmp_path / "in", num_key_value_heads=kv_heads, tie_word_embeddings=tied)
    model = read_model(folder)
    factors = np.random.default_rng(1).uniform(1, 4, model.config.head_dim // 2)
    extended = ScaleVector.create(factors)
    write_model(tmp_path / "out", model.config, model.params, extended, context=512, provenance={"method": "random"})
    # 600 is beyond both the original context of 128 and the 512 that the export claims, where transformers
    # switches to the long list: the two lists must agree.
    for length in (32, 600):
        tokens = random_tokens(length)
        for place, rope in ((folder, model.rope), (tmp_path / "out", extended)):
            ours = our_logits(model.config, model.params, rope, tokens)
            np.testing.assert_allclose(ours, reference_logits(place, tokens), **TOLERANCE)
    # The scale vector is not without effect, or the test would prove nothing.
    assert np.abs(ours - our_logits(model.config, model.params, model.rope, tokens)).max() > 0.1

    again = read_model(tmp_path / "out")
    np.testing.assert_array_equal(again.rope.factors, extended.factors)
    assert again.config == dataclasses.replace(model.config, context=512)
    assert again.provenance == {"method": "random"}


@pytest.mark.parametrize(
    "overrides",
    [
        {"head_dim": 16},
        {"head_dim": 6, "num_key_value_heads": 1},
        {"rms_norm_eps": 0.03},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
        {
            "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        {
            "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
        {
            "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "attention_factor": 1.3,
                "truncate": False,
            },
        },
        {
            "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "short_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 4.0],
                "long_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 4.0],
            },
        },
    ],
    ids=[
        "wide-heads",
        "narrow-heads",
        "eps",
        "base",
        "linear",
        "llama3",
        "yarn",
        "yarn-every-key",
        "longrope-equal-lists",
    ],
)
def test_config_variants_equal_transformers(tmp_path, overrides):
    folder = write_random_llama(tmp_path / "in", **overrides)
    model = read_model(folder)
    tokens = random_tokens(150)
    expected = reference_logits(folder, tokens)
    np.testing.assert_allclose(our_logits(model.config, model.params, model.rope, tokens), expected, **TOLERANCE)

    # The same file as transformers 4 wrote it: `rope_theta` on top, `rope_scaling` with the rest.
    path = folder / "config.json"
    config = json.loads(path.read_text())
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    config["torch_dtype"] = config.pop("dtype")
    if scaling["rope_type"] == "linear":  # and before 4.43
        scaling["type"] = scaling.pop("rope_type")
    config["rope_scaling"] = None if scaling.get("rope_type") == "default" else scaling
    path.write_text(json.dumps(config))
    old = check_model(folder)
    assert old.config == model.config
    np.testing.assert_array_equal(old.rope.factors, model.rope.factors)
    np.testing.assert_array_equal(old.rope.attention_factor, model.rope.attention_factor)
    np.testing.assert_array_equal(reference_logits(folder, tokens), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["yarn", "longrope"])
def test_an_attention_factor_stays_out_of_the_weights(tmp_path, kind, dtype):
    """In bfloat16, too, an extension is transformers' own: no weight is rounded for it."""
    model = read_model(write_random_llama(tmp_path / "in", dtype))
    head_dim, tokens = model.config.head_dim, random_tokens(300)
    rope = compose(identity(head_dim), yarn(model.config.rope_base, head_dim, 4.0, 128))
    assert float(rope.attention_factor) > 1.13  # 0.1 ln 4 + 1
    if kind == "longrope":
        rope = ScaleVector.create(np.linspace(1, 4, head_dim // 2), rope.attention_factor)
    write_model(tmp_path / "out", model.config, model.params, rope, context=512, provenance={"method": kind})
    assert stored_bytes(tmp_path / "out") == stored_bytes(tmp_path / "in")
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert described["rope_parameters"]["rope_type"] == kind
    assert described["rope_parameters"]["attention_factor"] == float(rope.attention_factor)
    expected = reference_logits(tmp_path / "out", tokens)
    np.testing.assert_allclose(our_logits(model.config, model.params, rope, tokens), expected, **TOLERANCE)
    again = read_model(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again.rope, rope)
    if kind == "yarn":
        # The source with the block that transformers documents.
        path = tmp_path / "in" / "config.json"
        block = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0}
        changes = {"rope_parameters": block, "max_position_embeddings": 512}
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        np.testing.assert_array_equal(reference_logits(tmp_path / "in", tokens), expected)


def test_bfloat16_is_as_close_to_float32_as_transformers_is(tmp_path):
    folder = write_random_llama(tmp_path / "in", dtype=torch.bfloat16)
    model = read_model(folder)
    tokens = random_tokens(200)
    exact = reference_logits(folder, tokens)  # the same bfloat16 weights, computed in float32
    config = dataclasses.replace(model.config, dtype="bfloat16")
    ours = our_logits(config, model.params, model.rope, tokens)
    # Two bfloat16 implementations round at different places, so the yardstick is the error that the reference
    # makes itself. (It rounds cos, sin and the attention weights too, so ours is usually the smaller one.)
    theirs = np.sqrt(np.mean((reference_logits(folder, tokens, torch.bfloat16) - exact) ** 2))
    assert np.sqrt(np.mean((ours - exact) ** 2)) <= 1.25 * theirs


def test_layers_that_are_extended_alone_equal_transformers(tmp_path):
    """YaRN, its attention factor included, in two of four layers, by transformers' own rotary embeddings."""
    folder = write_random_llama(tmp_path / "model", num_hidden_layers=4)
    known = check_model(folder)
    geometry = Geometry(known.config.rope_base, known.config.head_dim, known.rope, known.config.num_layers)
    rope = Adjusted(METHODS["yarn"](), layers=(1, 3))(geometry, Measure(128, 512, intervals=16)).scale
    tokens = random_tokens(300)
    with quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    scaled = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
    config = transformers.AutoConfig.from_pretrained(folder, rope_parameters=scaled, max_position_embeddings=512)
    embedding = LlamaRotaryEmbedding(config)
    waves = embedding(torch.zeros(1), torch.arange(300)[None])

    def replaced(module, args, kwargs):
        return args, {**kwargs, "position_embeddings": waves}

    with torch.no_grad():
        plain = model(torch.asarray(tokens, dtype=torch.long)).logits.numpy()
        for layer in (1, 3):
            model.model.layers[layer].self_attn.register_forward_pre_hook(replaced, with_kwargs=True)
        expected = model(torch.asarray(tokens, dtype=torch.long)).logits.numpy()
    assert embedding.attention_scaling > 1.1 and np.abs(expected - plain).max() > 0.1
    ours = our_logits(known.config, read_model(folder).params, rope, tokens)
    np.testing.assert_allclose(ours, expected, **TOLERANCE)
