"""Tokenizers in GGUF files against those they were converted from, and against llama.cpp on the same files."""

import json

import gguf
import numpy as np
import pytest
import sentencepiece
import tokenizers
from transformers import AutoTokenizer

from rope_jax.data.gguf_tokenizer import GPT2, SMOLLM, SPLITS
from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.errors import InputError
from tests.interop.gguf_writing import write_reference
from tests.interop.llama_cpp import tokenized
from tests.interop.references import write_random_llama

ROWS = 420
TEXTS = [
    "The model turns 12345 angles.",
    "  spaces,\n\n lines\tand caf\u00e9 \u4f60\u597d \U0001f600 \u0661\u0662\u0663\u00bd",
    "It's DON'T <s> McDonald's iPhone/HTML \r\n  x",
]
CORPUS = [*TEXTS, "the model turns every pair by an angle that grows with its token 0123456789 it's don't McDonald"] * 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with rows for every vocabulary here."""
    return write_random_llama(tmp_path_factory.mktemp("wide") / "a", vocab_size=ROWS, hidden_size=32, head_dim=8)


def padded(values):
    """A token, score or type for every row, as llama.cpp's conversion fills them up."""
    rest = range(len(values), ROWS)
    return values + [{str: f"[PAD{i}]", float: -1000.0, int: 5}[type(values[0])] for i in rest]


def ours(file, texts):
    """Ids by this package, and by transformers from what it writes."""
    tokenizer = load_tokenizer(file)
    tokenizer.save(file.with_suffix(""))
    again = AutoTokenizer.from_pretrained(file.with_suffix(""), local_files_only=True)
    ids = [tokenizer.encode(text).tolist() for text in texts]
    assert ids == [again.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts]
    assert [tokenizer.decode(row) for row in ids] == texts
    return tokenizer, again, ids


def byte_level(name):
    """A tokenizer trained on a few words, with the steps of the real one of that name."""
    steps = tokenizers.pre_tokenizers
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=name in ("llama-bpe", "tekken")))
    splitting = {
        GPT2: [steps.ByteLevel(add_prefix_space=False, use_regex=True)],
        SMOLLM: [steps.Digits(individual_digits=True), steps.ByteLevel(add_prefix_space=False, use_regex=True)],
    }.get(name)
    tokenizer.pre_tokenizer = steps.Sequence(
        splitting
        or [
            steps.Split(tokenizers.Regex(SPLITS[name]), "isolated"),
            steps.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=steps.ByteLevel.alphabet(), special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.mark.parametrize("name", [*SPLITS, GPT2, SMOLLM])
def test_byte_pairs(folder, tmp_path, name):
    reference = byte_level(name)
    vocabulary = sorted(reference.get_vocab(), key=reference.token_to_id)
    merges = json.loads(reference.to_str())["model"]["merges"]
    file = write_reference(
        tmp_path / "a.gguf",
        folder,
        "llama",
        tokenizer__ggml__model="gpt2",
        tokenizer__ggml__pre=name,
        tokenizer__ggml__tokens=padded([*vocabulary, "<s>", "</s>", "<|user|>"]),
        tokenizer__ggml__token_type=padded([1] * len(vocabulary) + [3, 3, 4]),
        tokenizer__ggml__merges=[" ".join(pair) for pair in merges],
        tokenizer__ggml__bos_token_id=len(vocabulary),
        tokenizer__ggml__eos_token_id=len(vocabulary) + 1,
        tokenizer__ggml__add_bos_token=True,
        tokenizer__chat_template="{{ messages }}",
    )
    tokenizer, again, ids = ours(file, TEXTS)
    assert ids == [reference.encode(text).ids for text in TEXTS]
    assert [[tokenizer.bos_id, *row] for row in ids] == tokenized(file, TEXTS)
    assert tokenizer.encode("a<|user|>")[1] == len(vocabulary) + 2
    assert len(tokenizer.encode("[PAD419]")) > 1
    assert (again.bos_token, again.eos_token, again.chat_template) == ("<s>", "</s>", "{{ messages }}")
    assert again("a").input_ids == [tokenizer.bos_id, *tokenizer.encode("a")]


@pytest.mark.parametrize(("kind", "prefix"), [("bpe", True), ("bpe", False), ("unigram", True)])
def test_sentencepiece(folder, tmp_path, kind, prefix):
    (tmp_path / "text").write_text("\n".join(CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type=kind,
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        required_chars="<>/0123456789ABCDEFxsunk[P]",
        minloglevel=2,
    )
    vocabulary = gguf.vocab.SentencePieceVocab(tmp_path)
    tokens, scores, types = zip(*vocabulary.all_tokens())
    file = write_reference(
        tmp_path / "a.gguf",
        folder,
        "llama",
        tokenizer__ggml__model="llama",
        tokenizer__ggml__pre="default",
        tokenizer__ggml__tokens=padded([str(token, "utf-8") for token in tokens]),
        tokenizer__ggml__scores=padded([float(score) for score in scores]),
        tokenizer__ggml__token_type=padded([int(kind) for kind in types]),
        tokenizer__ggml__add_space_prefix=prefix,
        tokenizer__ggml__bos_token_id=1,
        tokenizer__ggml__eos_token_id=2,
        tokenizer__ggml__unknown_token_id=0,
    )
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    tokenizer, again, ids = ours(file, TEXTS)
    assert ids == [reference.encode(text) for text in TEXTS]
    if kind == "bpe":  # llama.cpp takes a unigram model for byte pairs
        assert [[1, *row] for row in ids] == tokenized(file, TEXTS)
    assert (tokenizer.bos_id, tokenizer.eos_id, again.unk_token) == (1, 2, "<unk>")
    assert (file.with_suffix("") / "tokenizer.model").is_file()


GOOD = {
    "tokenizer__ggml__model": "gpt2",
    "tokenizer__ggml__pre": "gpt-2",
    "tokenizer__ggml__tokens": ["a", "b"],
    "tokenizer__ggml__merges": ["a b"],
}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tokenizer__ggml__model": "bert"}, "its kind is 'bert'"),
        ({"tokenizer__ggml__pre": "poro-chat"}, "tokenizer.ggml.pre is 'poro-chat', and llama-bpe"),
        ({"tokenizer__ggml__pre": None}, "tokenizer.ggml.pre is ''"),
        ({"tokenizer__ggml__tokens": [1, 2]}, "tokens is no list of str"),
        ({"tokenizer__ggml__tokens": ["a", "a"]}, "a token is there twice"),
        ({"tokenizer__ggml__token_type": [1]}, "token_type has 1 entries for 2"),
        ({"tokenizer__ggml__bos_token_id": 2}, "bos_token_id is 2 of 2 tokens"),
        ({"tokenizer__ggml__model": "llama", "tokenizer__ggml__scores": [1, 2]}, "scores is no list of float"),
        ({"tokenizer__ggml__model": None, "tokenizer__ggml__tokens": None}, "holds no tokenizer"),
    ],
    ids=str,
)
def test_what_has_no_equivalent_is_refused(folder, tmp_path, keys, message):
    keys = GOOD | keys
    if keys["tokenizer__ggml__model"] is None:
        keys["tokenizer__ggml__model"] = "no_vocab"
    file = write_reference(tmp_path / "a.gguf", folder, "llama", **keys)
    with pytest.raises(InputError, match=message) as error:
        load_tokenizer(file)
    assert str(file) in str(error.value)


def test_files_of_a_loaded_tokenizer_go_with_it(folder, tmp_path):
    file = write_reference(tmp_path / "a.gguf", folder, "llama", **GOOD)
    tokenizer = load_tokenizer(file)
    place = tokenizer.folder
    np.testing.assert_array_equal(tokenizer.encode("ab"), [0, 1])
    assert place.is_dir()
    del tokenizer
    assert not place.exists()
