"""A config.json that asks for something else than we compute is refused, by file, key, value and fix."""

import dataclasses
import json
import re

import numpy as np
import pytest

from rope_jax.errors import InputError
from rope_jax.interop import hf_keys
from rope_jax.interop.hf_config import read_config
from rope_jax.interop.hf_keys import PROVENANCE_KEY
from rope_jax.rope.methods.explicit import longrope_attention_factor

# LLaMA2 7B's own file, with what transformers has written into such files over the years.
GOOD = {
    "_name_or_path": "meta-llama/Llama-2-7b-hf",
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "output_attentions": False,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
ONES = [1.0] * 64


def write(folder, **changes):
    folder.mkdir(exist_ok=True)
    config = {key: value for key, value in (GOOD | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_llama2(tmp_path):
    source = read_config(write(tmp_path))
    config = source.config
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (32000, 4096, 11008)
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (32, 32, 32, 128)
    assert (config.rms_norm_eps, config.rope_base, config.context) == (1e-5, 10000.0, 4096)
    assert (config.tie_embeddings, config.param_dtype) == (False, "float16")
    np.testing.assert_array_equal(source.rope.factors, np.ones(64))
    assert source.provenance is None
    assert source.carried["eos_token_id"] == 2
    assert "_name_or_path" not in source.carried


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_defaults_are_those_of_transformers(tmp_path, kind):
    import transformers

    optional = ["num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling"]
    optional += ["tie_word_embeddings", "initializer_range", "hidden_act", "torch_dtype", "attention_bias"]
    folder = write(tmp_path, model_type=kind, architectures=..., hidden_size=8192, **dict.fromkeys(optional, ...))
    if kind == "mistral":
        write(tmp_path, model_type=kind, architectures=..., num_attention_heads=8, **dict.fromkeys(optional, ...))
    ours, theirs = read_config(folder).config, transformers.AutoConfig.from_pretrained(folder)
    assert ours.architecture == theirs.model_type
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.context == theirs.max_position_embeddings
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.rope_base == theirs.rope_parameters["rope_theta"]
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    assert ours.initializer_range == theirs.initializer_range
    # Qwen2 has no such key, and divides.
    assert ours.head_dim == getattr(theirs, "head_dim", theirs.hidden_size // theirs.num_attention_heads)
    assert ours.sliding_window == getattr(theirs, "sliding_window", None)
    # Neither has Qwen2 a switch for its biases.
    assert ours.attention_bias == getattr(theirs, "attention_bias", kind == "qwen2")


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_what_transformers_writes_by_default_is_understood(tmp_path, kind):
    import transformers

    config = transformers.AutoConfig.for_model(kind, hidden_size=64, num_attention_heads=32, num_hidden_layers=1)
    config.save_pretrained(tmp_path / "short")
    read_config(tmp_path / "short")
    # And every key that it knows, not only those that differ from its defaults.
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    read_config(tmp_path)


def test_duplicated_information_may_agree(tmp_path):
    block = {"rope_type": "linear", "factor": 2}
    folder = write(
        tmp_path,
        rope_scaling={"type": "linear", "factor": 2.0},
        rope_parameters=block | {"rope_theta": 10000},
        dtype="float16",
        max_position_embeddings=8192,
    )
    np.testing.assert_array_equal(read_config(folder).rope.factors, np.full(64, 2.0))


def test_keys_that_transformers_does_not_read_are_carried(tmp_path):
    """Of a LLaMA-1, of a GGUF file that transformers has read, and of others."""
    odd = {"max_sequence_length": 2048, "unk_token_id": 0, "_model_name_or_path": "x", "use_sliding_window": False}
    source = read_config(write(tmp_path, **odd))
    assert set(source.undeclared) == set(odd)
    assert source.carried.items() >= odd.items()
    assert read_config(write(tmp_path)).undeclared == ()


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_key_that_transformers_declares_is_known(kind):
    import transformers

    known = hf_keys.ARCHITECTURES[kind]
    names = {field.name for field in dataclasses.fields(transformers.AutoConfig.for_model(kind))}
    understood = hf_keys.UNDERSTOOD | {*known.understood, *known.harmless, *known.values}
    assert names <= understood | hf_keys.HARMLESS | hf_keys.HARMLESS_VALUES.keys()


def test_blocks_of_layer_types(tmp_path):
    yarn = YARN | {"original_max_position_embeddings": 1024, "rope_theta": 10000.0}
    alike = {"full_attention": yarn, "sliding_attention": yarn}
    assert read_config(write(tmp_path, rope_parameters=alike)).rope.factors.max() == 4
    # All layers of such a model are of full attention, and one more type says nothing about them.
    qwen = QWEN2 | {"rope_parameters": alike | {"sliding_attention": {"rope_type": "default"}}}
    assert read_config(write(tmp_path, **qwen)).rope.factors.max() == 4


def test_longrope_without_attention_factor_derives_it(tmp_path):
    block = {"rope_type": "longrope", "short_factor": ONES, "long_factor": ONES, "factor": 4.0}
    folder = write(tmp_path, rope_scaling=block | {"original_max_position_embeddings": 4096})
    expected = np.float32(longrope_attention_factor(4.0, 4096))
    assert read_config(folder).rope.attention_factor == expected


LONGROPE = {"rope_type": "longrope", "short_factor": ONES, "long_factor": ONES, "attention_factor": 1.0}
YARN = {"rope_type": "yarn", "factor": 4.0}

MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "attention_bias": ...}
QWEN2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "attention_bias": ...}
QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # Another computation.
        ({"attention_bias": "yes"}, r'attention_bias is "yes": give true or false'),
        ({"mlp_bias": True}, r"mlp_bias is true"),
        ({"hidden_act": "gelu"}, r'hidden_act is "gelu": only "silu"'),
        ({"pretraining_tp": 2}, r"pretraining_tp is 2: only 1"),
        ({"pretraining_tp": True}, r"pretraining_tp is true"),
        ({"attention_dropout": 0.1}, r"attention_dropout is 0.1"),
        ({"is_decoder": 1}, r"is_decoder is 1: only false"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor is 0.5"),
        ({"quantization_config": {"bits": 4}}, r'quantization_config is {"bits": 4}'),
        ({"auto_map": {"AutoModel": "x.Y"}}, r"auto_map is .*: only null"),
        (
            {"quantization_config": {}, "is_causal": False, "hidden_act": "gelu"},
            r"hidden_act.*quantization_config.*is_causal",
        ),
        ({"sliding_window": 4096}, r"sliding_window is 4096: only null"),
        (MISTRAL | {"sliding_window": 0}, r"sliding_window is 0: give a positive integer"),
        (MISTRAL | {"sliding_window": True}, r"sliding_window is true: give a positive integer"),
        (MISTRAL | {"attention_bias": True}, r"attention_bias is true: only false"),
        (MISTRAL | {"layer_types": ["sliding_attention"] * 32}, r"layer_types is .*only full attention"),
        (MISTRAL | {"architectures": ["LlamaForCausalLM"]}, r'architectures is .*\["MistralForCausalLM"\]'),
        (QWEN2 | {"use_sliding_window": True}, r"use_sliding_window is true: only false"),
        (QWEN2 | {"use_mrope": True}, r"use_mrope is true: only false"),
        (QWEN2 | {"layer_types": ["sliding_attention"] * 32}, r"layer_types is .*only full attention"),
        (QWEN2 | {"layer_types": ["full_attention"] * 31}, r"layer_types is .*only full attention"),
        (QWEN2 | {"attention_bias": False}, r"attention_bias is false: only true"),
        (QWEN3 | {"use_sliding_window": True}, r"use_sliding_window is true: only false"),
        (QWEN3 | {"mlp_bias": True}, r"mlp_bias is true: only false"),
        ({"model_type": "gemma"}, r'model_type is "gemma": use a model of type llama, mistral, qwen2, qwen3'),
        ({"model_type": ["llama"]}, r"model_type is"),
        ({"model_type": ...}, r"model_type is null"),
        ({"architectures": ["LlamaForSequenceClassification"]}, r"architectures is .*LlamaForCausalLM"),
        # Malformed sizes.
        ({"hidden_size": ...}, r"hidden_size is null: give a positive integer"),
        ({"vocab_size": "32000"}, r'vocab_size is "32000"'),
        ({"num_hidden_layers": 0}, r"num_hidden_layers is 0"),
        ({"num_hidden_layers": True}, r"num_hidden_layers is true"),
        ({"num_key_value_heads": 5}, r"num_key_value_heads is 5: .*num_attention_heads, which is 32"),
        ({"num_attention_heads": 31, "num_key_value_heads": 31}, r"hidden_size is 4096: num_attention_heads is 31"),
        ({"head_dim": 127}, r"head_dim is 127: .*even"),
        ({"rms_norm_eps": "1e-5"}, r'rms_norm_eps is "1e-5": give a positive finite number'),
        ({"rms_norm_eps": float("nan")}, r"rms_norm_eps is NaN"),
        ({"tie_word_embeddings": "false"}, r'tie_word_embeddings is "false": give true or false'),
        ({"torch_dtype": "int8"}, r'torch_dtype is "int8": use weights in float32'),
        ({PROVENANCE_KEY: 3}, rf"{PROVENANCE_KEY} is 3"),
        # Rotary positions.
        ({"rope_theta": 1.0}, r"rope_theta is 1.0: it must be above 1"),
        ({"rope_theta": -1}, r"rope_theta is -1"),
        ({"rope_scaling": "linear"}, r'rope_scaling is "linear": give an object'),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            r"rope_scaling.rope_type is \"dynamic\": unsupported rope_scaling",
        ),
        ({"rope_scaling": {"type": "su"}}, r'rope_scaling.rope_type is "su": unsupported rope_scaling'),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, r"unsupported rope_scaling"),
        (
            {"rope_parameters": {"full_attention": YARN, "sliding_attention": {}}},
            r"full_attention, sliding_attention differ",
        ),
        (
            {"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 1.5}},
            r"partial_rotary_factor is 1\.5",
        ),
        ({"rope_scaling": LONGROPE | {"short_mscale": 1.2}}, r"short_mscale is 1\.2: the attention factor is 1"),
        # Sizes that ask for memory before any weight is seen, and numbers that no float holds.
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers is 1000000000: give a positive integer of at most 10,000"),
        ({"num_hidden_layers": 10**400}, r"num_hidden_layers is 1000"),
        (QWEN2 | {"num_hidden_layers": 10**9, "layer_types": ["full_attention"]}, r"num_hidden_layers"),
        ({"hidden_size": 10**11}, r"hidden_size is 100000000000: .* at most 1,048,576"),
        ({"head_dim": 10**11}, r"head_dim is"),
        ({"vocab_size": 10**18}, r"vocab_size is"),
        ({"max_position_embeddings": 10**18}, r"max_position_embeddings is"),
        ({"rms_norm_eps": 10**400}, r"rms_norm_eps is 1000"),
        ({"rope_theta": 10**400}, r"rope_theta is 1000"),
        ({"rope_theta": 1e300}, r"rope_theta is 1e\+300"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 1e300}}, r"factor is 1e\+300"),
        ({"rope_scaling": YARN | {"attention_factor": 1e300}}, r"attention_factor is 1e\+300"),
        ({"rope_scaling": LONGROPE | {"short_factor": [10**400] * 64, "long_factor": [10**400] * 64}}, r"long_factor"),
        ({"rope_scaling": {"rope_type": "linear"}}, r"rope_scaling has no factor, which rope_type linear"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, r"factor is 0\.5"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, r'rope_scaling.factor is "2"'),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 3}}, r"rope_scaling.beta_fast is 3"),
        ({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}}, r"rope_scaling.type"),
        ({"rope_scaling": YARN | {"mscale": 1.0}}, r"rope_scaling.mscale is 1.0: unsupported rope_scaling"),
        ({"rope_scaling": YARN | {"truncate": 1}}, r"truncate is 1"),
        ({"rope_scaling": YARN | {"partial_rotary_factor": 0.5}}, r"partial_rotary_factor is 0.5: only 1"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, r"rope_scaling has no high_freq_factor"),
        ({"rope_scaling": LONGROPE | {"long_factor": [2.0] * 64}}, r"short_factor and rope_scaling.long_factor differ"),
        (
            {"rope_scaling": LONGROPE | {"short_factor": [1.0] * 63, "long_factor": [1.0] * 63}},
            r"shape \[63\]: a head dimension of 128 needs \[64\]",
        ),
        (
            {"rope_scaling": LONGROPE | {"short_factor": [0.0] * 64, "long_factor": [0.0] * 64}},
            r"must be a finite number above 0",
        ),
        (
            {"rope_scaling": LONGROPE | {"short_factor": ["1"] * 64, "long_factor": ["1"] * 64}},
            r"long_factor is .*give a list of numbers",
        ),
        ({"original_max_position_embeddings": 2048}, r"rope_type default uses none"),
        # Duplicates that disagree.
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
            r"rope_theta is 10000.0, rope_parameters.rope_theta is 500000.0",
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": YARN},
            r"rope_scaling is .* and rope_parameters .*describe one thing",
        ),
        (
            {"rope_scaling": YARN | {"original_max_position_embeddings": 2048}, "original_max_position_embeddings": 1},
            r"original_max_position_embeddings is 1, rope_scaling.original_max_position_embeddings is 2048",
        ),
        ({"dtype": "bfloat16"}, r"dtype is bfloat16 and torch_dtype float16"),
    ],
)
def test_refused(tmp_path, changes, message):
    folder = write(tmp_path, **changes)
    with pytest.raises(InputError) as error:
        read_config(folder)
    assert str(folder / "config.json") in str(error.value)
    assert re.search(message, str(error.value)), error.value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "holds a JSON list"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"model_type": "llama", "model_type": "llama"}', "has the key 'model_type' twice"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "100 deep"),
        (b" " * (5 << 20), "more than 4 MiB"),
    ],
)
def test_unreadable(tmp_path, text, message):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(InputError, match=message):
        read_config(tmp_path)
