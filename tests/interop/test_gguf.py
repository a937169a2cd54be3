"""GGUF against llama.cpp itself: what it computes with our files, and what it makes of text."""

import builtins
import dataclasses
import json

import gguf
import numpy as np
import pytest
import sentencepiece
import tokenizers
import transformers
from scipy.special import log_softmax

from rope_jax.data.byte_tokenizer import ByteTokenizer
from rope_jax.data.gguf_tokenizer import SPLITS
from rope_jax.errors import InputError
from rope_jax.interop.gguf_export import add_factors, check_gguf, write_gguf
from rope_jax.interop.gguf_files import read_gguf_rope
from rope_jax.interop.hf_config import read_config
from rope_jax.interop.model_folder import read_source
from rope_jax.interop.new_folder import rescale_folder
from rope_jax.interop.verify import VerificationError, verify_gguf
from rope_jax.rope.embedding import ScaleVector, identity
from rope_jax.rope.methods.interpolation import ntk
from tests.interop.llama_cpp import log_probabilities, tokenized
from tests.interop.references import reference_logits, write_random_llama

VOCAB = 258
# An attention factor and a vector of no formula; head_dim 16.
ROPE = ScaleVector.create(np.linspace(1, 4, 8) ** 1.5, 1.3)
TOKENS = np.random.default_rng(0).integers(0, 256, (1, 200))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf") / "source"
    sizes = {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    write_random_llama(folder, **sizes, bos_token_id=256, eos_token_id=257)
    ByteTokenizer().save(folder)
    return folder


@pytest.fixture(scope="module")
def exported(folder):
    target = folder.parent / "exported"
    rescale_folder(folder, target, ROPE, context=256, provenance={"method": "explicit"})
    return target


@pytest.fixture(scope="module")
def plain(folder):
    """A GGUF file from before the extension."""
    file = folder.parent / "plain.gguf"
    write_gguf(file, folder, identity(16), context=128, provenance={})
    return file


def converted(folder, file, rope=ROPE, **options):
    write_gguf(file, folder, rope, context=256, provenance={"method": "explicit"}, **options)
    return file


def reference(folder):
    return log_softmax(reference_logits(folder, TOKENS)[0, -1].astype(np.float64))


def tensors(file):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


@pytest.mark.parametrize("how", ["source", "export", "existing"])
def test_llama_cpp_computes_what_transformers_computes(folder, exported, plain, tmp_path, how):
    """200 tokens of a model for 128: every rotation counts in the last position."""
    file = tmp_path / "model.gguf"
    match how:
        case "source":
            converted(folder, file)
        case "export":
            converted(exported, file, read_config(exported).rope)
        case "existing":
            add_factors(file, plain, ROPE, base=10000.0, context=256, provenance={})
    found = log_probabilities(file, TOKENS[0].tolist(), VOCAB, 256)
    # float32 sums in another order, on log probabilities of order 10.
    np.testing.assert_allclose(found, reference(exported), atol=1e-4)


def test_without_the_tensor_it_computes_something_else(folder, exported, tmp_path):
    """The control: what conversion by llama.cpp's own script would leave."""
    found = log_probabilities(converted(folder, tmp_path / "a.gguf", identity(16)), TOKENS[0].tolist(), VOCAB, 256)
    np.testing.assert_allclose(found, reference(folder), atol=1e-4)
    assert np.abs(found - reference(exported)).max() > 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 4, "head_dim": 32, "attention_bias": True},
        {"architecture": "mistral", "sliding_window": None},
        {"architecture": "qwen2"},
    ],
    ids=str,
)
def test_other_models(tmp_path, options):
    folder = write_random_llama(tmp_path / "a", vocab_size=VOCAB, hidden_size=64, **options)
    ByteTokenizer().save(folder)
    rope = ScaleVector.create(np.linspace(1, 3, options.get("head_dim", 16) // 2), 1.2)
    file = converted(folder, tmp_path / "a.gguf", rope)
    rescale_folder(folder, tmp_path / "b", rope, context=256, provenance={})
    found = log_probabilities(file, TOKENS[0].tolist(), VOCAB, 256)
    np.testing.assert_allclose(found, reference(tmp_path / "b"), atol=1e-4)


@pytest.mark.parametrize("how", ["source", "existing"])
def test_qwen3_takes_another_base(tmp_path, how):
    """Its graph has no place for factors; a vector that is another base needs none."""
    folder = write_random_llama(tmp_path / "a", vocab_size=VOCAB, hidden_size=64, architecture="qwen3", head_dim=32)
    ByteTokenizer().save(folder)
    refused(folder, tmp_path, "reads no scale vector for a qwen3 model", rope=ScaleVector.create(np.full(16, 2.0)))
    rope = ScaleVector.create(ntk(32, 4.0).factors, 1.2)
    if how == "source":
        file = converted(folder, tmp_path / "a.gguf", rope)
    else:
        plain, file = converted(folder, tmp_path / "plain.gguf", identity(32)), tmp_path / "a.gguf"
        add_factors(file, plain, rope, base=1e4, context=256, provenance={})
        assert read_gguf_rope(plain).base == 1e4
    verify_gguf(file, rope, base=1e4, context=256)
    with pytest.raises(VerificationError, match="scale vector of rotary base 10000 is"):
        verify_gguf(file, identity(32), base=1e4, context=256)
    own = read_source(file)
    assert own.config.rope_base == 1e4
    np.testing.assert_allclose(own.rope.factors, rope.factors, rtol=4e-7)  # GGUF keeps the base as float32
    rescale_folder(folder, tmp_path / "b", rope, context=256, provenance={})
    found = log_probabilities(file, TOKENS[0].tolist(), VOCAB, 256)
    np.testing.assert_allclose(found, reference(tmp_path / "b"), atol=1e-4)


@pytest.mark.parametrize(("dtype", "kind", "bits"), [("float16", "F16", 11), ("bfloat16", "BF16", 8)])
def test_half_precision_rounds_matrices_once(folder, plain, tmp_path, dtype, kind, bits):
    whole, half = tensors(plain), tensors(converted(folder, tmp_path / "half.gguf", dtype=dtype))
    assert set(half) == {*whole, "rope_freqs.weight"}
    for name, tensor in whole.items():
        if tensor.data.ndim == 1:
            assert half[name].tensor_type.name == "F32"
            continue
        assert half[name].tensor_type.name == kind
        values = gguf.quants.dequantize(half[name].data, half[name].tensor_type)
        # Half a unit in the last place; subnormal float16 below 6e-5 on top.
        np.testing.assert_allclose(values, tensor.data, rtol=2.0**-bits * 1.01, atol=3e-8)


def test_an_existing_file_keeps_every_other_byte(plain, tmp_path):
    """Of a quantised file with another scaling: tensors and metadata stay, the scaling goes."""
    reader, quantised = gguf.GGUFReader(plain), tmp_path / "quantised.gguf"
    writer = gguf.GGUFWriter(quantised, "llama")
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            array = field.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if array else None)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(2.0)
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if data.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            data = gguf.quants.quantize(data, kind)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    seen = []
    progress = lambda done, total: seen.append((done, total))  # noqa: E731
    add_factors(
        tmp_path / "new.gguf", quantised, ROPE, base=10000.0, context=256, provenance={"a": 1}, progress=progress
    )
    before, after = tensors(quantised), tensors(tmp_path / "new.gguf")
    np.testing.assert_array_equal(after.pop("rope_freqs.weight").data, np.asarray(ROPE.factors))
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert after[name].tensor_type == tensor.tensor_type
        assert after[name].data.tobytes() == tensor.data.tobytes()
    assert seen[-1][0] == seen[-1][1] == sum(tensor.n_bytes for tensor in before.values())
    old, new = (
        {k: f.contents() for k, f in gguf.GGUFReader(f).fields.items() if not k.startswith("GGUF.")}
        for f in (quantised, tmp_path / "new.gguf")
    )
    gone = {key: value for key, value in old.items() if new.get(key) != value}
    assert gone == {
        "llama.context_length": 128,
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 2.0,
        "rope_jax.provenance": "{}",
    }
    assert new["llama.context_length"] == 256
    assert new["llama.rope.scaling.attn_factor"] == np.float32(1.3)
    # Once more: the tensor is replaced, not doubled.
    other = ScaleVector.create(np.full(8, 2.0))
    add_factors(tmp_path / "twice.gguf", tmp_path / "new.gguf", other, base=1e4, context=128, provenance={})
    assert read_gguf_rope(tmp_path / "twice.gguf").attention_factor == 1
    assert list(tensors(tmp_path / "twice.gguf")).count("rope_freqs.weight") == 1


TEXTS = [
    "The model turns 12345 angles.",
    "  spaces,\n\n lines\tand caf\u00e9 \u4f60\u597d \U0001f600",
    "It's DON'T <s> x",
]


def bpe(folder, byte_level):
    """A tokenizer.json of either kind, trained on some words."""
    corpus = ["the model turns every pair by an angle that grows with its token 0123456789 it's don't"] * 5
    if byte_level:
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        split = SPLITS[byte_level]
        steps = tokenizers.pre_tokenizers
        tokenizer.pre_tokenizer = steps.Sequence(
            [
                steps.Split(tokenizers.Regex(split), "isolated"),
                steps.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=steps.ByteLevel.alphabet(), special_tokens=[], show_progress=False
        )
    else:
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True))
        normalizers = tokenizers.normalizers
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    if not byte_level:
        # The bytes are tokens of the model, as in LLaMA2's file, and not added ones.
        described = json.loads(tokenizer.to_str())
        described["added_tokens"] = described["added_tokens"][:1]
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(described))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    tokenizer.save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described | {"split_special_tokens": True}))
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def with_tokenizer(folder, place, files=()):
    place.mkdir()
    for file in (*files, "config.json", "model.safetensors"):
        (place / file).write_bytes((folder / file).read_bytes())
    return place


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model with rows to spare."""
    return write_random_llama(tmp_path_factory.mktemp("wide") / "a", vocab_size=400, hidden_size=64)


@pytest.mark.parametrize("kind", ["llama-bpe", "qwen2", "byte fallback"])
def test_llama_cpp_reads_text_as_transformers_does(wide, tmp_path, kind):
    folder = with_tokenizer(wide, tmp_path / "a")
    tokenizer = bpe(folder, None if kind == "byte fallback" else kind)
    file = converted(folder, tmp_path / "a.gguf")
    assert tokenized(file, TEXTS) == [tokenizer(text).input_ids for text in TEXTS]
    listed = gguf.GGUFReader(file).get_field("tokenizer.ggml.tokens").contents()
    assert len(listed) == 400 and listed[399] == "[PAD399]"


def test_llama_cpp_reads_bytes(folder, tmp_path):
    texts = [text.replace("<s>", "") for text in TEXTS]
    expected = [[256, *text.encode()] for text in texts]
    assert tokenized(converted(folder, tmp_path / "a.gguf"), texts) == expected


def sentencepiece_model(folder, kind, **options):
    words = "the model turns every pair by an angle that grows with its token 0123456789"
    (folder / "text").write_text("\n".join([words] * 50))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        model_type=kind,
        vocab_size=330,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **options,
    )


@pytest.mark.parametrize("prefix", [True, False])
def test_llama_cpp_reads_text_as_sentencepiece_does(wide, tmp_path, prefix):
    folder = with_tokenizer(wide, tmp_path / "a")
    sentencepiece_model(folder, "bpe", add_dummy_prefix=prefix)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    file = converted(folder, tmp_path / "a.gguf")
    texts = [text.replace("<s>", "") for text in TEXTS]
    assert [ids[1:] for ids in tokenized(file, texts)] == [processor.encode(text) for text in texts]


def refused(folder, tmp_path, match, **options):
    with pytest.raises(InputError, match=match):
        converted(folder, tmp_path / "a.gguf", **options)
    assert not list(tmp_path.glob("*.gguf*")) and not list(tmp_path.glob(".*"))


def test_unknown_tokenizers_are_refused(wide, tmp_path):
    bare = with_tokenizer(wide, tmp_path / "bare")
    refused(bare, tmp_path, r"neither tokenizer\.json nor tokenizer\.model.*vocabulary")
    for name, content, match in (
        ("unigram", {"model": {"type": "Unigram", "vocab": []}}, "'Unigram'"),
        ("split", {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, "splits text in a way"),
        ("large", {"model": {"type": "BPE", "vocab": {"a": 500}, "byte_fallback": True}}, "ids up to 500"),
    ):
        folder = with_tokenizer(wide, tmp_path / name)
        (folder / "tokenizer.json").write_text(json.dumps(content))
        refused(folder, tmp_path, match)
    folder = with_tokenizer(wide, tmp_path / "pieces")
    sentencepiece_model(folder, "unigram")
    refused(folder, tmp_path, "unigram model")
    file = converted(bare, tmp_path / "a.gguf", vocabulary=False)
    assert gguf.GGUFReader(file).get_field("tokenizer.ggml.model").contents() == "no_vocab"


def test_unusable_arguments(folder, plain, tmp_path, monkeypatch):
    refused(folder, tmp_path, "`dtype` is 'int8'", dtype="int8")
    refused(folder, tmp_path, "GGUF holds one vector of 8 for all", rope=ScaleVector.create(np.ones((2, 8))))
    with pytest.raises(InputError, match="already exists"):
        converted(folder, plain)
    config = read_config(folder).config
    qwen3 = dataclasses.replace(config, architecture="qwen3")
    with pytest.raises(InputError, match="reads no scale vector for a qwen3 model"):
        check_gguf(qwen3, ROPE, 256)
    check_gguf(qwen3, identity(16), 256)
    window = dataclasses.replace(config, architecture="mistral", sliding_window=100)
    with pytest.raises(InputError, match="attends to 100 tokens"):
        check_gguf(window, ROPE, 256)
    common = {"context": 256, "provenance": {}}
    with pytest.raises(InputError, match="has rotary base 10000 where the model has 500000"):
        add_factors(tmp_path / "a.gguf", plain, ROPE, base=500000.0, **common)
    with pytest.raises(InputError, match="rotates 16 dimensions"):
        add_factors(tmp_path / "a.gguf", plain, identity(32), base=10000.0, **common)
    with pytest.raises(InputError, match="is no file"):
        add_factors(tmp_path / "a.gguf", tmp_path / "none.gguf", ROPE, base=10000.0, **common)
    for length in (0, 3, 20, 200, plain.stat().st_size - 1):
        (tmp_path / "cut.bin").write_bytes(plain.read_bytes()[:length])
        with pytest.raises(InputError, match=r"cut\.bin is no complete GGUF file"):
            add_factors(tmp_path / "a.gguf", tmp_path / "cut.bin", ROPE, base=10000.0, **common)
    assert not list(tmp_path.glob("*.gguf"))

    real = builtins.__import__
    missing = lambda name, *rest: (_ for _ in ()).throw(ImportError) if name == "gguf" else real(name, *rest)  # noqa: E731
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=r"pip install -e '\.\[gguf\]'"):
        check_gguf(config, ROPE, 256)


def test_a_split_file_is_refused(plain, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "split.gguf", "llama")
    writer.add_uint16("split.count", 2)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="one of several files"):
        add_factors(tmp_path / "a.gguf", tmp_path / "split.gguf", ROPE, base=10000.0, context=256, provenance={})
