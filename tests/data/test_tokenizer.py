"""Tokenizers against transformers and sentencepiece, and the folders that `save` writes."""

import base64
import functools
import io
import json
import logging
import os
import re

import numpy as np
import pytest
import sentencepiece
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer

from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.errors import InputError

# What JSON and UTF-8 can carry: all of Unicode but lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SAMPLES = [
    "",
    " ",
    "The pass key is 51427. Remember it. 51427 is the pass key.",
    "  two spaces,\ttab\r\nnew\n\nlines  ",
    "naïve café, 日本語, Ελληνικά, עברית, 👩\u200d🚀😀",
    "null \x00 and \x7f, \ufeff, \ufffd, \U0010ffff",
    "<s> </s> <unk> <0x0A> [INST]",
]


def plain_ids(tokenizer, text):
    """What transformers says, special tokens neither added nor recognised."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


@pytest.fixture(scope="module")
def saved_bytes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    load_tokenizer("bytes").save(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@given(TEXT)
def test_bytes_round_trip(text):
    tokenizer = load_tokenizer("bytes")
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([256, *ids, 257]) == text


@given(text=TEXT)
def test_saved_bytes_give_identical_ids(saved_bytes, text):
    ids = load_tokenizer("bytes").encode(text).tolist()
    assert saved_bytes(text, add_special_tokens=False).input_ids == ids
    assert saved_bytes(text).input_ids == [256, *ids]
    assert saved_bytes.decode([256, *ids, 257], skip_special_tokens=True) == text


@pytest.mark.parametrize("text", SAMPLES)
def test_saved_bytes_on_samples(saved_bytes, text):
    assert saved_bytes(text, add_special_tokens=False).input_ids == list(text.encode())


def test_saved_bytes_beside_a_llama_config(tmp_path):
    load_tokenizer("bytes").save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (len(loaded), loaded.bos_token_id, loaded.eos_token_id) == (258, 256, 257)
    for text in SAMPLES:
        assert loaded(text, add_special_tokens=False).input_ids == list(text.encode())
        assert load_tokenizer(tmp_path).encode(text).tolist() == list(text.encode())


def test_bytes_decode_what_is_no_utf8():
    tokenizer = load_tokenizer("bytes")
    assert tokenizer.decode([0xE2, 0x82, 97]) == "\ufffda"
    assert tokenizer.decode(np.array([104, 105, 257, 300, -1], np.int32)) == "hi"


@pytest.fixture(scope="module")
def bpe_folder(tmp_path_factory):
    """A byte-level BPE in the style of LLaMA3, whose tokenizer.json also asks to cut and to pad."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SAMPLES * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=4, pad_id=1, pad_token="<|end|>")
    folder = tmp_path_factory.mktemp("bpe")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "model_max_length": 16,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_huggingface_folder(bpe_folder):
    tokenizer = load_tokenizer(bpe_folder)
    # The reference has neither limits nor special tokens.
    reference = tokenizers.Tokenizer.from_file(str(bpe_folder / "tokenizer.json"))
    reference.no_truncation()
    reference.no_padding()
    assert tokenizer.vocab_size == reference.get_vocab_size()
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    for text in SAMPLES:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert ids.tolist() == reference.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(np.append(ids, 1)) == text
    assert 1 not in tokenizer.encode("a <|end|> b"), "text must not become a special token"
    assert tokenizer.decode(tokenizer.encode("a <|end|> b")) == "a <|end|> b"
    assert tokenizer.decode(tokenizer.encode("é")[:1]).endswith("\ufffd") or len(tokenizer.encode("é")) == 1


def test_long_documents_raise_no_warning(bpe_folder, caplog, recwarn, capfd):
    transformers.logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            ids = load_tokenizer(bpe_folder).encode("The pass key is 51427. \n" * 20_000)
    finally:
        transformers.logging.disable_propagation()
    assert len(ids) > 100_000
    assert not caplog.records and not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_huggingface_save_copies_data_only(bpe_folder, tmp_path):
    source = tmp_path / "source"
    load_tokenizer(bpe_folder).save(source)
    (source / "tokenization_evil.py").write_text("raise SystemExit")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "model.safetensors").write_bytes(b"weights")
    tokenizer = load_tokenizer(source)
    tokenizer.save(tmp_path / "target")
    tokenizer.save(source)  # Onto itself: nothing to do.
    names = {path.name for path in (tmp_path / "target").iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert (tmp_path / "target" / "tokenizer.json").read_bytes() == (bpe_folder / "tokenizer.json").read_bytes()


def test_huggingface_folder_without_tokenizer_json(tmp_path):
    ByT5Tokenizer().save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    tokenizer, reference = load_tokenizer(tmp_path), ByT5Tokenizer()
    for text in ["naïve café", "a </s> b"]:
        assert tokenizer.encode(text).tolist() == plain_ids(reference, text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, reference.eos_token_id)


def train_sentencepiece(folder, **options):
    text = folder / "text.txt"
    text.write_text("\n".join(sample for sample in SAMPLES * 20 if "\x00" not in sample))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        byte_fallback=True,
        minloglevel=2,
        **({"vocab_size": 320} | options),
    )
    text.unlink()
    (folder / "tokenizer.vocab").unlink()
    return folder / "tokenizer.model"


PLAIN = {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False}


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("add_dummy_prefix", [True, False])
def test_sentencepiece_and_its_saved_folder(tmp_path, add_dummy_prefix, kind):
    options = PLAIN | {"model_type": kind, "add_dummy_prefix": add_dummy_prefix}
    # A unigram model whose pieces spell its control symbols, as any real one's do.
    spelt = {"required_chars": "<>/0123456789ABCDEFxsunk", "vocab_size": 336} if kind == "unigram" else {}
    model = train_sentencepiece(tmp_path, **options, **spelt)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(model))
    tokenizer = load_tokenizer(tmp_path)  # A folder that holds only the model.
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (spelt.get("vocab_size", 320), 1, 2)
    tokenizer.save(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved", local_files_only=True)
    for text in SAMPLES:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert ids.tolist() == reference.encode(text) == plain_ids(saved, text)
        assert tokenizer.decode([1, *ids, 2, 5000]) == text
        assert saved.decode(ids) == text
        assert load_tokenizer(tmp_path / "saved").encode(text).tolist() == ids.tolist()
    assert saved("pass key").input_ids == [1, *tokenizer.encode("pass key")]


@pytest.mark.parametrize("options", [{"model_type": "bpe"}, {**PLAIN, "user_defined_symbols": ["<x>"]}])
def test_sentencepiece_without_equivalent_is_not_saved(tmp_path, options):
    tokenizer = load_tokenizer(train_sentencepiece(tmp_path, **options))
    with pytest.raises(InputError, match=r"without an exact tokenizer\.json.*Hugging Face folder"):
        tokenizer.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_llama2(shared, tmp_path):
    model = shared / "data" / "llama2_tokenizer" / "tokenizer.model"
    tokenizer = load_tokenizer(model)
    assert load_tokenizer(model.parent).path == model
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (32000, 1, 2)
    ids = tokenizer.encode("I believe the meaning of life is")
    assert ids.tolist() == [306, 4658, 278, 6593, 310, 2834, 338]

    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    saved = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    # transformers 5 differs from sentencepiece on leading spaces and on runs of spaces, and only there.
    reference = transformers.LlamaTokenizer.from_pretrained(model.parent, local_files_only=True)
    books = shared / "data" / "books" / "test"
    texts = [path.read_text()[:20_000].strip() for path in sorted(books.iterdir())[:2]]
    for text in [*texts, *(sample.strip() for sample in SAMPLES)]:
        ids = tokenizer.encode(text).tolist()
        assert plain_ids(saved, text) == ids
        assert tokenizer.decode(ids) == text
        assert saved.decode(ids) == text
        single_spaced = " ".join(text.split())
        assert plain_ids(reference, single_spaced) == tokenizer.encode(single_spaced).tolist()


def test_what_is_no_tokenizer_is_named(tmp_path):
    for path, message in (("meta-llama/Llama-2-7b-hf", "hf download"), (tmp_path, r"has no tokenizer\.json")):
        with pytest.raises(InputError, match=message) as error:
            load_tokenizer(path)
        assert error.value.field == "path"
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")  # The format of LLaMA3's.
    with pytest.raises(InputError, match=r"tokenizer\.model is not a sentencepiece model.*tokenizer\.json"):
        load_tokenizer(tmp_path)
    for copies in (1, 2):  # of a piece that is not UTF-8; sentencepiece refuses a second one, and quotes it
        pieces = [{"piece": "<unk>", "type": 2}, {"piece": "<s>", "type": 3}, {"piece": "</s>", "type": 3}]
        model = sentencepiece_model_pb2.ModelProto(pieces=pieces + [{"piece": "~"}] * copies)
        (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString().replace(b"~", b"\xf9"))
        with pytest.raises(InputError, match=r"tokenizer\.model is not a sentencepiece model"):
            load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="transformers cannot load") as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_code_in_the_folder_is_not_run(tmp_path, monkeypatch):
    marker = tmp_path / "was-run"
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "tokenization_evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass EvilTokenizer: ...\n")
    auto_map = {"AutoTokenizer": ["tokenization_evil.EvilTokenizer", None]}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "EvilTokenizer", "auto_map": auto_map})
    )
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    with pytest.raises(InputError, match="code in the folder is never run"):
        load_tokenizer(folder)
    assert not marker.exists()


WORDS = {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}


@pytest.fixture(scope="module")
def charsmap():
    """A character map as sentencepiece writes it."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["pairs turn"] * 9),
        model_writer=out,
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return sentencepiece_model_pb2.ModelProto.FromString(out.getvalue()).normalizer_spec.precompiled_charsmap


def with_model(folder, model=WORDS, **changes):
    described = {"version": "1.0", "added_tokens": [], "model": model, **changes}
    (folder / "tokenizer.json").write_text(json.dumps(described))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


@pytest.mark.parametrize(
    "model",
    [
        {"type": "WordLevel", "vocab": {}, "unk_token": "[UNK]"},
        {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"},
        {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 2**32 - 1}, "unk_token": "[UNK]"},
        {"type": "BPE", "vocab": {}, "merges": []},
        {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": None},
        {"type": "Unigram", "vocab": [], "unk_id": 0},
        functools.reduce(lambda inner, _: [inner], range(80), {}),
        functools.reduce(lambda inner, _: [inner], range(180), {}),
    ],
    ids=["empty words", "no unknown word", "huge id", "empty BPE", "no unknown piece", "no pieces", "nested", "deep"],
)
def test_unusable_vocabularies(tmp_path, model):
    with pytest.raises(InputError, match=re.escape(str(tmp_path))):
        load_tokenizer(with_model(tmp_path, model))


def test_a_vocabulary_of_special_tokens_alone(tmp_path):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = {"id": 0, "content": "<s>", "special": True, **flags}
    with_model(tmp_path, {"type": "BPE", "vocab": {}, "merges": []}, added_tokens=[special])
    with pytest.raises(InputError, match="no token for text"):
        load_tokenizer(tmp_path)


def test_a_broken_charsmap_does_not_end_the_process(tmp_path, charsmap):
    def normalizer(content):
        found = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(bytes(content)).decode()}
        return {"type": "Sequence", "normalizers": [found]}

    assert load_tokenizer(with_model(tmp_path, normalizer=normalizer(charsmap))).encode("a").tolist() == [0]
    size, noise = int.from_bytes(charsmap[:4], "little"), np.random.default_rng(0).bytes(1000)
    for content in (
        b"",
        charsmap[:100],
        b"\xff\xff\xff\x7f" + charsmap[4:],
        charsmap[:4] + noise + charsmap[1004:],
        charsmap[: 4 + size] + b"\0",  # values without their replacements
        charsmap[: 4 + size] + b"\xff" * (len(charsmap) - size - 5) + b"\0",
    ):
        check = {"normalizer": normalizer(content)}
        with pytest.raises(InputError, match=r"tokenizer\.json has a precompiled_charsmap that is damaged"):
            load_tokenizer(with_model(tmp_path, **check))
    broken = {"type": "Precompiled", "precompiled_charsmap": 3}
    with pytest.raises(InputError, match="precompiled_charsmap"):
        load_tokenizer(with_model(tmp_path, normalizer=broken))


def test_a_pipe_is_not_waited_for(tmp_path):
    with_model(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    os.mkfifo(tmp_path / "tokenizer_config.json")
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not a regular file"):
        load_tokenizer(tmp_path)
    (tmp_path / "alone").mkdir()
    os.mkfifo(tmp_path / "alone" / "tokenizer.model")
    with pytest.raises(InputError, match=r"tokenizer\.model is not a regular file"):
        load_tokenizer(tmp_path / "alone")


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "tokenizer_config.json", "vocab.json"])
def test_a_file_of_gigabytes_is_not_read(tmp_path, name):
    if name != "tokenizer.model":
        with_model(tmp_path)
    with (tmp_path / name).open("wb") as file:
        file.truncate(5 << 30)
    with pytest.raises(InputError, match=rf"{name} holds more than 128 MiB"):
        load_tokenizer(tmp_path)
