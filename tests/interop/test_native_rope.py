"""Vectors in the words of `config.json`, against the frequencies that transformers computes from those words."""

import json

import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rope_jax.interop.export_config import describe_export
from rope_jax.interop.hf_config import read_config
from rope_jax.interop.model_card import CardFacts, write_card
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector, frequencies, identity, periods
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods import METHODS
from tests.interop.references import transformers_messages

# Vectors that the engines have a word for. float32 frequencies of transformers are rounded several times.
WORDS = {
    "extrapolation": "default",
    "ntk": "default",
    "dynamic_ntk": "default",
    "abf": "default",
    "critical_base": "default",
    "pi": "linear",
    "llama3": "llama3",
    "yarn": "yarn",
    "p_rope": "proportional",
    "proportional": "proportional",
    "nope": "proportional",
    "hard_cut": "proportional",
}
RTOL = 2e-6


def shape(head_dim=64, base=10000.0, context=4096):
    sizes = {"vocab_size": 8, "hidden_size": 2 * head_dim, "intermediate_size": 8, "num_layers": 1, "num_heads": 2}
    return LlamaConfig(**sizes, num_kv_heads=2, head_dim=head_dim, rope_base=base, context=context)


def exported(folder, config, scale, context, **options):
    described = describe_export(config, scale, context=context, dtype="float32", provenance={}, **options)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(described))
    return described["rope_parameters"]


def served(folder, length):
    """Frequencies and attention factor of transformers, at a length."""
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = config.rope_parameters["rope_type"]
    if kind == "default":
        compute = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding.compute_default_rope_parameters
        frequency, factor = compute(config)
    else:
        frequency, factor = ROPE_INIT_FUNCTIONS[kind](config, device="cpu", seq_len=length)
    return frequency.numpy(), factor


def solved(method, geometry, measure):
    parameters = {"new_base": 50 * geometry.base} if method == "abf" else {}
    return METHODS[method](**parameters).scale(geometry, measure)


@pytest.mark.parametrize(
    ("head_dim", "base", "original", "target"),
    [(64, 10000.0, 4096, 8192), (128, 500000.0, 8192, 49152)],
)
@pytest.mark.parametrize("method", [name for name in METHODS if hasattr(METHODS[name], "scale") and name != "explicit"])
def test_every_method_is_served_and_read_back(tmp_path, method, head_dim, base, original, target):
    config = shape(head_dim, base, original)
    scale = solved(method, Geometry(base, head_dim, identity(head_dim)), Measure(original, target))
    with transformers_messages() as messages:
        block = exported(tmp_path, config, scale, target)
        assert block["rope_type"] == WORDS.get(method, "longrope")
        for length in (original, target):
            frequency, factor = served(tmp_path, length)
            expected = frequencies(base, head_dim) / np.asarray(scale.factors, np.float64)
            # What stands still there has a frequency of 2^-60 here.
            np.testing.assert_allclose(frequency, expected, rtol=RTOL, atol=2.0**-59)
            assert factor == pytest.approx(float(scale.attention_factor), rel=1e-7)
    factor = float(scale.attention_factor)
    warned = (block["rope_type"] == "longrope" and factor != 1) or (method, "factor" in block) == ("proportional", True)
    assert bool(messages) == warned, messages
    if block["rope_type"] == "longrope" and factor != 1:
        assert (block["short_mscale"], block["long_mscale"]) == (factor, factor)
    found = read_config(tmp_path)
    assert (found.config.rope_base, found.config.context) == (base, target)
    np.testing.assert_array_equal(found.rope.factors, scale.factors, strict=True)
    np.testing.assert_array_equal(found.rope.attention_factor, scale.attention_factor)


def test_longrope_is_served_to_the_bit(tmp_path):
    scale = ScaleVector.create(np.random.default_rng(0).uniform(1, 4, 32), 1.0)
    assert exported(tmp_path, shape(), scale, 8192)["rope_type"] == "longrope"
    for length in (100, 8193):
        frequency, _ = served(tmp_path, length)
        # In the order of `rope.embedding.phases`.
        np.testing.assert_array_equal(frequency, 1 / (np.asarray(scale.factors) * periods(10000.0, 64)))


@pytest.mark.parametrize(
    ("attention_factor", "said"), [(1.0, "yes"), (1.2, "**no: it leaves out the attention factor")]
)
def test_the_card_says_which_engine_leaves_out_the_attention_factor(tmp_path, attention_factor, said):
    """`pytest -m engines` reads that back from mlx-lm itself, and from others that they do not."""
    scale = ScaleVector.create(np.linspace(1, 4, 32), attention_factor)
    exported(tmp_path, shape(), scale, 8192)
    write_card(tmp_path, CardFacts("t", "s", "explicit", scale, 4096, 8192), None)
    text = (tmp_path / "README.md").read_text()
    assert f"| mlx-lm | {said}" in text and "| vLLM on GPUs and CPUs | yes |" in text


def test_words_are_decided_by_the_vector(tmp_path):
    """One bit in one pair, or another attention factor, and it is a vector of no other name."""
    for method in ("ntk", "pi", "llama3", "yarn", "p_rope"):
        scale = solved(method, Geometry(10000.0, 64, identity(64)), Measure(4096, 8192))
        factors = np.array(scale.factors)
        factors[9] = np.nextafter(factors[9], np.float32(np.inf))
        for other in (
            ScaleVector.create(factors, scale.attention_factor),
            ScaleVector.create(scale.factors, 1.03),
        ):
            assert exported(tmp_path, shape(), other, 8192)["rope_type"] == "longrope"
            found = read_config(tmp_path).rope
            np.testing.assert_array_equal(found.factors, other.factors)
            np.testing.assert_array_equal(found.attention_factor, other.attention_factor)
    # A file of the same numbers is the same vector.
    assert exported(tmp_path, shape(), ScaleVector.create(np.full(32, 1.1)), 8192)["factor"] == 1.1
    assert exported(tmp_path, shape(), ScaleVector.create(np.full(32, 3.0)), 8192)["factor"] == 3.0


def test_a_new_base_has_few_digits(tmp_path):
    scale = solved("abf", Geometry(10000.0, 64, identity(64)), Measure(4096, 8192))
    described = describe_export(shape(), scale, context=8192, dtype="float32", provenance={})
    assert (described["rope_theta"], described["rope_scaling"]) == (500000.0, None)
    assert described["rope_jax"] == {"base": 10000.0}


def test_the_words_of_the_source_stay(tmp_path):
    """LLaMA-3.1 as it is, under a longer context: its own block and not a list of 64 numbers."""
    block = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    block |= {"original_max_position_embeddings": 64}
    described = describe_export(shape(), identity(64), context=512, dtype="float32", provenance={})
    described |= {"rope_scaling": block, "rope_parameters": block | {"rope_theta": 10000.0}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    source = read_config(tmp_path)
    assert exported(tmp_path / "out", source.config, source.rope, 1024, source=source) == block | {"rope_theta": 1e4}
