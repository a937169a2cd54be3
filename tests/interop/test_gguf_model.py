"""Models in GGUF files against transformers and llama.cpp, which read the same files."""

import json
import struct

import gguf
import jax
import numpy as np
import pytest
import torch
import transformers
from scipy.special import log_softmax
from transformers.convert_slow_tokenizer import bytes_to_unicode

from rope_jax.data.byte_tokenizer import ByteTokenizer
from rope_jax.errors import InputError
from rope_jax.gguf_reader import LARGEST, read_gguf
from rope_jax.interop.gguf_export import write_gguf
from rope_jax.interop.huggingface import check_model, read_model, write_model
from rope_jax.interop.model_card import CardFacts, write_card
from rope_jax.interop.model_folder import inspect
from rope_jax.interop.new_folder import rescale_folder
from rope_jax.rope.embedding import ScaleVector, identity
from tests.interop.gguf_writing import SCALES, write_reference
from tests.interop.llama_cpp import log_probabilities
from tests.interop.references import quiet_transformers, reference_logits, write_random_llama

# Rows of a K-quant are multiples of 256. Of such width, usual weights of 0.2 would make attention so sharp that it
# amplifies float32's rounding tenfold.
SIZES = {"vocab_size": 258, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 64}
SIZES["initializer_range"] = 0.1
TOKENS = np.random.default_rng(0).integers(0, 256, (1, 200))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder for each family."""
    place = tmp_path_factory.mktemp("models")
    for name, options in {
        "llama": {},
        "biased": {"architecture": "llama", "attention_bias": True},
        "tied": {"architecture": "llama", "tie_word_embeddings": True},
        "qwen2": {"architecture": "qwen2"},
        # transformers takes 128 for the head dimension of any Qwen3 in GGUF.
        "qwen3": {"architecture": "qwen3", "head_dim": 128, "num_attention_heads": 2, "num_key_value_heads": 1},
    }.items():
        write_random_llama(place / name, **(SIZES | options))
    return place


def read_by_transformers(file):
    with quiet_transformers():
        return transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)


def stored(file):
    """Every tensor as this package reads it, whole and by blocks of heads or rows."""
    values = {}
    for name, tensor in inspect(file)[1].items():
        values[name] = np.asarray(tensor.read(), np.float32)
        assert values[name].shape == tensor.shape
    return values


QUANTISATIONS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", *SCALES)


@pytest.mark.parametrize(
    ("model", "kind"),
    [*(("llama", kind) for kind in QUANTISATIONS), ("tied", "Q8_0"), ("qwen2", "Q8_0"), ("qwen3", "Q4_0")],
)
def test_tensors_are_those_that_transformers_reads(models, tmp_path, model, kind):
    architecture = "llama" if model == "tied" else model
    file = write_reference(tmp_path / "a.gguf", models / model, architecture, kind)
    reference = {name: value.numpy() for name, value in read_by_transformers(file).state_dict().items()}
    if model == "tied":
        del reference["lm_head.weight"]
    found = stored(file)
    assert set(found) == set(reference)
    for name, value in found.items():
        # Products of float16 scales and small integers, in float32.
        np.testing.assert_allclose(value, reference[name], rtol=1e-6, atol=1e-7, err_msg=name)


def test_parameters_are_those_of_the_exported_folder(models, tmp_path):
    """Straight to shardings, one piece of a tensor at a time."""
    file = write_reference(tmp_path / "a.gguf", models / "llama", "llama", "Q8_0")
    rescale_folder(file, tmp_path / "b", identity(64), context=128, provenance={"a": 1})
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    found, expected = read_model(file, sharding), read_model(tmp_path / "b")
    assert found.config == expected.config and found.carried == {} and found.provenance is None
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    write_model(tmp_path / "c", found.config, found.params, identity(64), context=128, provenance={"a": 1}, source=file)
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == json.loads(
        (tmp_path / "c" / "config.json").read_text()
    )


YARN = {
    "rope__scaling__type": "yarn",
    "rope__scaling__factor": 4.0,
    "rope__scaling__original_context_length": 64,
}
FACTORS = np.linspace(1, 4, 32) ** 1.5


@pytest.mark.parametrize(
    ("model", "architecture", "keys"),
    [
        ("llama", "llama", {}),
        ("llama", "llama", {"factors": FACTORS, "rope__scaling__attn_factor": 1.3}),
        ("llama", "llama", {"factors": FACTORS, "rope__scale_linear": 2.0}),
        ("biased", "llama", {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}),
        # A Qwen2 as our own export writes it.
        ("qwen2", "llama", {"factors": FACTORS}),
        ("qwen2", "qwen2", YARN | {"rope__scaling__yarn_beta_fast": 16.0}),
        ("qwen3", "qwen3", YARN | {"rope__scaling__attn_factor": 0.9}),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else value,
)
def test_the_exported_folder_computes_what_llama_cpp_computes_with_the_file(
    models, tmp_path, model, architecture, keys
):
    """200 tokens of a model for 128."""
    vocabulary = {
        "tokenizer__ggml__model": "gpt2",
        "tokenizer__ggml__pre": "gpt-2",
        "tokenizer__ggml__tokens": [*bytes_to_unicode().values(), "<s>", "</s>"],
        "tokenizer__ggml__token_type": [1] * 256 + [3, 3],
        "tokenizer__ggml__merges": ["\u0100\u0100 \u0100\u0100"],
    }
    # llama.cpp allocates no more than the file's context.
    file = write_reference(tmp_path / "a.gguf", models / model, architecture, context_length=256, **vocabulary, **keys)
    own = check_model(file).rope
    rescale_folder(file, tmp_path / "b", own, context=256, provenance={})
    expected = log_softmax(reference_logits(tmp_path / "b", TOKENS)[0, -1].astype(np.float64))
    found = log_probabilities(file, TOKENS[0].tolist(), 258, 256)
    # float32 sums in another order, on log probabilities of order 10.
    np.testing.assert_allclose(found, expected, atol=1e-4)
    if keys:
        assert not np.all(np.asarray(own.factors) == 1)


def test_what_we_write_comes_back(models, tmp_path):
    """Bits, dtype, scale vector, provenance, ids and tokenizer."""
    folder = models / "tied"
    ByteTokenizer().save(folder)
    rope = ScaleVector.create(FACTORS, 1.0)
    write_gguf(tmp_path / "a.gguf", folder, rope, context=512, provenance={"method": "x"}, dtype="float16")
    known = check_model(tmp_path / "a.gguf")
    np.testing.assert_array_equal(known.rope.factors, rope.factors)
    assert known.config.context == 512 and known.provenance == {"method": "x"} and known.rope.attention_factor == 1
    assert known.carried == {"bos_token_id": 256, "eos_token_id": 257}
    write_gguf(tmp_path / "b.gguf", folder, rope, context=512, provenance={})
    ours, theirs = stored(tmp_path / "b.gguf"), {n: t.read() for n, t in inspect(folder)[1].items()}
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name])


def test_vectors_have_the_dtype_of_the_matrices_where_that_is_exact(tmp_path):
    """llama.cpp keeps norms in float32 whatever the model's dtype."""
    folder = write_random_llama(tmp_path / "half", torch.bfloat16, hidden_size=32, num_attention_heads=2)
    write_gguf(tmp_path / "a.gguf", folder, identity(16), context=128, provenance={}, vocabulary=False)
    rescale_folder(tmp_path / "a.gguf", tmp_path / "b", identity(16), context=128, provenance={})
    for name, tensor in inspect(folder)[1].items():
        again = inspect(tmp_path / "b")[1][name]
        assert again.dtype == "BF16"
        assert again.read().tobytes() == tensor.read().tobytes()


def test_a_card_states_the_licence_of_the_file(models, tmp_path):
    keys = {"general__license": "apache-2.0", "general__license__link": "https://example.org"}
    file = write_reference(tmp_path / "a.gguf", models / "llama", "llama", **keys)
    (tmp_path / "card").mkdir()
    write_card(tmp_path / "card", CardFacts("t", "s", "yarn", identity(64), 128, 256), file)
    text = (tmp_path / "card" / "README.md").read_text()
    assert "\nlicense: apache-2.0\n" in text and "https://example.org" in text


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A file of a few kilobytes."""
    place = tmp_path_factory.mktemp("small")
    write_random_llama(place / "a", hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
    return place / "a", write_reference(place / "a.gguf", place / "a", "llama")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attention__head_count": 0}, r"llama\.attention\.head_count is 0: give a positive integer"),
        ({"attention__head_count": "2"}, r'head_count is "2": give a positive integer'),
        ({"attention__head_count_kv": [1, 2]}, r"head_count_kv is \[1, 2\]"),
        ({"attention__head_count": 4}, r"llama\.attention\.key_length is 16: blk\.0\.attn_q\.weight has 32 rows"),
        ({"attention__key_length": 1 << 31}, r"key_length is 2147483648: give a positive integer of at most"),
        ({"attention__value_length": 8}, "only the head dimension, 16"),
        ({"rope__dimension_count": 8}, "only the head dimension, 16"),
        ({"block_count": 10**9}, "block_count is 1000000000"),
        ({"block_count": 2}, "lacks model.layers.1"),
        ({"embedding_length": None}, "embedding_length is null"),
        ({"attention__layer_norm_rms_epsilon": float("nan")}, "rms_epsilon is NaN"),
        ({"attention__sliding_window": 64}, "attends to all"),
        ({"logit_scale": 2.0}, r"llama\.logit_scale is 2\.0: this key is not understood"),
        ({"expert_count": 8}, "expert_count is 8: only 0"),
        ({"rope__scaling__type": "longrope"}, "only none, linear and yarn"),
        ({"rope__freq_base": 1.0}, r"llama\.rope\.freq_base is 1"),
        ({"rope__scaling__factor": 0.5}, r"llama\.rope\.scaling\.factor"),
        ({"rope__scaling__factor": "4"}, "give a positive finite number"),
        ({"factors": [1.0, 2.0]}, r"rope_freqs\.weight has shape \[2\]"),
        ({"factors": [-1.0] * 8}, r"rope_freqs\.weight has -1"),
        ({"split__count": 2}, "join them first"),
        ({"rope_jax__provenance": "[" * 100_000}, "no JSON object"),
    ],
    ids=str,
)
def test_metadata_of_another_computation_is_refused(small, tmp_path, keys, message):
    file = write_reference(tmp_path / "b.gguf", small[0], "llama", **keys)
    with pytest.raises(InputError, match=message) as error:
        check_model(file)
    assert str(file) in str(error.value)


def test_other_architectures_and_tensors_are_refused(small, tmp_path):
    folder, _ = small
    with pytest.raises(InputError, match="is a 'gemma' model"):
        check_model(write_reference(tmp_path / "a.gguf", folder, "llama", general__architecture="gemma"))
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match=r"no matrix token_embd\.weight"):
        check_model(tmp_path / "b.gguf")
    with pytest.raises(InputError, match="is a GGUF file already"):
        write_gguf(tmp_path / "c.gguf", small[1], identity(16), context=128, provenance={})


def header(*, keys=(), tensors=(), tensor_count=None, key_count=None, tail=b"", version=3):
    """A GGUF file of given key entries and tensor entries, bytes each."""
    counts = (len(tensors) if tensor_count is None else tensor_count, len(keys) if key_count is None else key_count)
    return b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors) + tail


def text(value):
    return struct.pack("<Q", len(value)) + value


def entry(name, *dims, kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


HUGE = 1 << 60


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends where"),
        (b"GGML" + bytes(20), "does not begin with GGUF"),
        (header(version=1), "version 1"),
        (header(key_count=HUGE), "ends where"),
        (header(tensor_count=HUGE), "ends where"),
        (header(keys=[struct.pack("<Q", HUGE)]), "ends where"),
        (header(keys=[text(b"a") + struct.pack("<IIQ", 9, 8, HUGE)]), "its arrays have"),
        (header(keys=[text(b"a") + struct.pack("<IIQ", 9, 4, LARGEST)]), "ends where"),
        (header(keys=[text(b"a") + struct.pack("<IIQ", 9, 9, 1)]), "an array of type 9"),
        (header(keys=[text(b"a") + struct.pack("<I", 77)]), "value type 77"),
        (header(keys=[text(b"a") + struct.pack("<II", 4, 1)] * 2), "'a' is there twice"),
        (header(keys=[text(b"\xff") + struct.pack("<II", 4, 1)]), "not UTF-8"),
        (header(keys=[text(b"general.alignment") + struct.pack("<II", 4, 0)]), "alignment is 0"),
        (header(tensors=[entry(b"t", 8)], tail=bytes(31)), "does not lie in it"),
        (header(tensors=[entry(b"t", 8, offset=HUGE)], tail=bytes(64)), "does not lie in it"),
        (header(tensors=[entry(b"t", 8, offset=1)], tail=bytes(99)), "does not lie in it"),
        (header(tensors=[entry(b"t", HUGE, HUGE, HUGE)], tail=bytes(64)), "does not lie in it"),
        (header(tensors=[entry(b"t", 0)], tail=bytes(64)), "has shape"),
        (header(tensors=[entry(b"t", 33, kind=8)], tail=bytes(99)), "in blocks of 32"),
        (header(tensors=[entry(b"t", *[1] * 5)], tail=bytes(64)), "5 dimensions"),
        (header(tensors=[entry(b"t", 8, kind=4)], tail=bytes(64)), "type 4"),
        (header(tensors=[entry(b"t", 8)] * 2, tail=bytes(99)), "'t' is there twice"),
    ],
)
def test_no_size_is_believed(tmp_path, content, message):
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_gguf(tmp_path / "a.gguf")
    assert f"{tmp_path / 'a.gguf'} is no complete GGUF file" in str(error.value)


def test_a_cut_file_is_refused_at_any_byte(small, tmp_path):
    content = small[1].read_bytes()
    for length in np.random.default_rng(0).integers(0, len(content), 100):
        (tmp_path / "cut.gguf").write_bytes(content[:length])
        with pytest.raises(InputError, match="is no complete GGUF file"):
            check_model(tmp_path / "cut.gguf")


def test_big_endian_metadata_is_read(small, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_context_length(128)
    writer.add_array("general.languages", ["en", "de"])
    writer.add_array("general.numbers", [1, 2])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(tmp_path / "b.gguf")
    assert found.big_endian and found.values["llama.context_length"] == 128
    assert found.values["general.languages"] == ["en", "de"] and found.values["general.numbers"] == [1, 2]
    with pytest.raises(InputError, match="is big-endian"):
        check_model(tmp_path / "b.gguf")
