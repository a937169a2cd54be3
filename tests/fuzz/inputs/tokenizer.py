"""`tokenizer.json` and sentencepiece models."""

from __future__ import annotations

import base64
import functools
import io
import json
from pathlib import Path
from random import Random
from typing import Any

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from rope_jax.data.tokenizer import load_tokenizer
from tests.fuzz.damage import Change
from tests.fuzz.inputs.gguf import use_tokens
from tests.fuzz.inputs.kinds import TEXT, Kind
from tests.fuzz.inputs.models import ALPHABET, CONFIG_FILE, content

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}


@functools.cache
def charsmap() -> bytes:
    """A character map as sentencepiece writes it."""
    return sentencepiece_model_pb2.ModelProto.FromString(piece_model("nmt_nfkc")).normalizer_spec.precompiled_charsmap


@functools.cache
def piece_model(rule: str = "identity") -> bytes:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 9),
        model_writer=out,
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        model_type="bpe",
        normalization_rule_name=rule,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return out.getvalue()


def write_tokenizer_folder(folder: Path) -> None:
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={token: i for i, token in enumerate(ALPHABET)}, merges=[])
    )
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 256)]
    )
    tokenizer.save(str(folder / TOKENIZER))
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(FAST))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))


def tokenizer_file(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        value = json.loads((folder / TOKENIZER).read_text())
        (folder / TOKENIZER).write_text(json.dumps(value | changes))

    return change


def damaged_charsmap(place: int, data: bytes = b"", end: int | None = None) -> Change:
    whole = charsmap()
    changed = (whole[:place] + data + whole[place + len(data) :])[:end]
    return tokenizer_file(
        normalizer={
            "type": "Sequence",
            "normalizers": [{"type": "Precompiled", "precompiled_charsmap": base64.b64encode(changed).decode()}],
        }
    )


def random_charsmap(seed: int) -> Change:
    def change(folder: Path) -> None:
        random = Random(seed)
        place = random.choice((0, 4, random.randrange(len(charsmap()))))
        damaged_charsmap(place, random.randbytes(random.choice((1, 4, 100))))(folder)

    return change


_WORDS = {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}
TOKENIZERS = Kind(
    write_tokenizer_folder,
    lambda folder: use_tokens(load_tokenizer(folder)),
    (TOKENIZER, TOKENIZER_CONFIG, "special_tokens_map.json"),
    refused={
        "no vocabulary": tokenizer_file(model={"type": "BPE", "vocab": {}, "merges": []}),
        "no words": tokenizer_file(model=_WORDS | {"vocab": {}}),
        "no unknown word": tokenizer_file(model=_WORDS | {"vocab": {"a": 0}}),
        "no unknown piece": tokenizer_file(model={"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": None}),
        "no pieces": tokenizer_file(model={"type": "Unigram", "vocab": [], "unk_id": 0}),
        "an unknown piece beyond": tokenizer_file(model={"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 5}),
        "an unknown model": tokenizer_file(model={"type": "Other"}),
        "a merge of nothing": tokenizer_file(model={"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}),
        "a list": content(TOKENIZER, "[]"),
        "deep nesting": content(TOKENIZER, "[" * 100_000),
        "deep objects": content(TOKENIZER, '{"a":' * 100_000),
        "a deep model": tokenizer_file(model=functools.reduce(lambda inner, _: [inner], range(90), {})),
        "a charsmap of 3": tokenizer_file(normalizer={"type": "Precompiled", "precompiled_charsmap": 3}),
        "no charsmap": tokenizer_file(normalizer={"type": "Precompiled"}),
        "an empty charsmap": damaged_charsmap(0, end=0),
        "a charsmap of 100 bytes": damaged_charsmap(0, end=100),
        "a charsmap cut": damaged_charsmap(0, end=-100),
        "a charsmap of noise": damaged_charsmap(4, Random(0).randbytes(1000)),
        "a trie of 2 GB": damaged_charsmap(0, b"\xff\xff\xff\x7f"),
        "code": lambda folder: (
            (folder / TOKENIZER).unlink(),
            (folder / "code.py").write_text("open('ran', 'w')"),
            (folder / TOKENIZER_CONFIG).write_text(json.dumps({"auto_map": {"AutoTokenizer": ["code.T", None]}})),
        ),
        "nothing": lambda folder: [path.unlink() for path in folder.iterdir()],
    },
    either={
        **{f"a charsmap with random bytes {seed}": random_charsmap(seed) for seed in range(40)},
        "a huge id": tokenizer_file(model=_WORDS | {"vocab": {"a": 0, "[UNK]": 2**32 - 1}}),
        "words for bytes": tokenizer_file(model=_WORDS),
        "ids with holes": tokenizer_file(model=_WORDS | {"vocab": {"a": 7, "[UNK]": 4_000_000}}),
        "a normalizer of 90 levels": tokenizer_file(
            normalizer=functools.reduce(
                lambda inner, _: {"type": "Sequence", "normalizers": [inner]}, range(40), {"type": "NFC"}
            )
        ),
        "a regular expression without end": tokenizer_file(
            pre_tokenizer={
                "type": "Split",
                "pattern": {"Regex": "(a+)+$"},
                "behavior": "Isolated",
                "invert": False,
            }
        ),
        "a template of a missing token": tokenizer_file(
            post_processor={"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}
        ),
        "tokenizer_class of another kind": content(TOKENIZER_CONFIG, '{"tokenizer_class": "BertTokenizer"}'),
        "an unknown tokenizer_class": content(TOKENIZER_CONFIG, '{"tokenizer_class": "Other"}'),
        "a config of model_type": content(CONFIG_FILE, '{"model_type": "other"}'),
        "a deep config": content(TOKENIZER_CONFIG, "[" * 100_000),
        "a template that does not end": content(
            TOKENIZER_CONFIG, json.dumps(FAST | {"chat_template": "{% for i in range(10**9) %}x{% endfor %}"})
        ),
    },
)

PIECES = Kind(
    lambda folder: (folder / "tokenizer.model").write_bytes(piece_model()),
    lambda folder: use_saved(load_tokenizer(folder), folder),
    ("tokenizer.model",),
    refused={
        "text": content("tokenizer.model", "IQ== 0\nIg== 1\n"),
        "noise": content("tokenizer.model", Random(0).randbytes(5000)),
    },
    either={"a normalizer": lambda folder: (folder / "tokenizer.model").write_bytes(piece_model("nmt_nfkc"))},
)


def use_saved(tokenizer: Any, folder: Path) -> None:
    use_tokens(tokenizer)
    tokenizer.save(folder / "saved")
