"""Malformed inputs by class: how a valid one is made, what is done to it, and the function that reads it."""

from __future__ import annotations

import base64
import dataclasses
import functools
import gzip
import io
import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from safetensors.numpy import save_file
from sentencepiece import sentencepiece_model_pb2

from configs.defaults import get_config
from experiments.methods import solved_method
from rope_jax.commands.fields import FIELDS, check_fields
from rope_jax.data.corpus import open_corpus
from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.evaluation.answering import read_predictions
from rope_jax.evaluation.babilong.stories import read_stories
from rope_jax.evaluation.haystack import read_haystack
from rope_jax.evaluation.kept import Kept
from rope_jax.evaluation.longbench.rows import read_rows
from rope_jax.evaluation.longbench.scoring import read_scored
from rope_jax.evaluation.many_shot import read_examples
from rope_jax.evaluation.ruler.questions import read_hotpotqa, read_squad
from rope_jax.interop.gguf_files import read_gguf_rope
from rope_jax.interop.huggingface import check_model, read_model
from rope_jax.interop.new_folder import rescale_folder
from rope_jax.rope.embedding import identity
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.usage import read_usage
from rope_jax.runs.folder import RunFolder
from tests.fuzz.damage import VALUES, Change, damaged_bytes, damaged_json, no_file, with_value
from tests.interop.gguf_writing import write_reference

TEXT = "The model turns 12345 angles, caf\u00e9 \u4f60\u597d \U0001f600.\n"


@dataclasses.dataclass(frozen=True)
class Input:
    """An input of a class.

    Attributes:
        prepare: changes a folder that holds the valid files of the class.
        read: gives what is in the folder to the function that reads it, and uses what that returns.
        answer: 'refused', 'accepted', or 'either' where only `read` can tell whether the input is valid.
    """

    kind: str
    name: str
    prepare: Change
    read: Change
    answer: str


@dataclasses.dataclass(frozen=True)
class Kind:
    """A class of inputs.

    Attributes:
        make: writes the valid files.
        read: as of `Input`.
        files: those that are damaged at random; the first is one that cannot do without.
        refused, either: what else is done to them.
    """

    make: Change
    read: Change
    files: tuple[str, ...]
    refused: Mapping[str, Change] = dataclasses.field(default_factory=dict)
    either: Mapping[str, Change] = dataclasses.field(default_factory=dict)


# Models: one block of 16 channels.
HEADS, KV_HEADS, HEAD_DIM, WIDTH, HIDDEN = 2, 1, 8, 16, 24
ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
VOCABULARY = [*ALPHABET, "<s>", "</s>"]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 10000.0,
    },
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "dtype": "float32",
    "bos_token_id": 256,
    "eos_token_id": [257],
}
_BLOCK = "model.layers.0"
SHAPES = {
    "model.embed_tokens.weight": (len(VOCABULARY), WIDTH),
    f"{_BLOCK}.input_layernorm.weight": (WIDTH,),
    f"{_BLOCK}.self_attn.q_proj.weight": (HEADS * HEAD_DIM, WIDTH),
    f"{_BLOCK}.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, WIDTH),
    f"{_BLOCK}.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, WIDTH),
    f"{_BLOCK}.self_attn.o_proj.weight": (WIDTH, HEADS * HEAD_DIM),
    f"{_BLOCK}.post_attention_layernorm.weight": (WIDTH,),
    f"{_BLOCK}.mlp.gate_proj.weight": (HIDDEN, WIDTH),
    f"{_BLOCK}.mlp.up_proj.weight": (HIDDEN, WIDTH),
    f"{_BLOCK}.mlp.down_proj.weight": (WIDTH, HIDDEN),
    "model.norm.weight": (WIDTH,),
    "lm_head.weight": (len(VOCABULARY), WIDTH),
}
MODEL, CONFIG_FILE, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"


def write_model_folder(folder: Path) -> None:
    random = np.random.default_rng(0)
    tensors = {name: random.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
    save_file(tensors, folder / MODEL, {"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(CONFIG))


def write_sharded_folder(folder: Path) -> None:
    write_model_folder(folder)
    (folder / MODEL).rename(folder / "model-00001-of-00001.safetensors")
    places = dict.fromkeys(SHAPES, "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def use_model(path: Path) -> None:
    known = check_model(path)
    model = read_model(path, param_dtype="float32")
    factors = np.asarray(known.rope.factors)
    assert np.isfinite(factors).all() and (factors > 0).all() and math.isfinite(float(known.rope.attention_factor))
    assert model.params["embedding"].shape == (known.config.vocab_size, known.config.hidden_size)


def export_beside(folder: Path) -> None:
    source = folder / "source"
    source.mkdir()
    for path in [path for path in folder.iterdir() if path != source]:
        path.rename(source / path.name)
    rescale_folder(source, folder / "copy", identity(HEAD_DIM), context=256, provenance={})
    for path in (folder / "copy").iterdir():
        assert path.stat().st_size > 1 << 20 or "a secret" not in path.read_text(errors="replace"), path.name


def changed_config(**changes: str) -> Change:
    """JSON texts in place of values of config.json."""

    def change(folder: Path) -> None:
        text = json.dumps({**CONFIG, **{key: f"\0{key}" for key in changes}})
        for key, value in changes.items():
            text = text.replace(json.dumps(f"\0{key}"), value)
        (folder / CONFIG_FILE).write_text(text)

    return change


def content(name: str, data: bytes | str) -> Change:
    """A file with this content."""
    return lambda folder: (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def header(data: bytes | str, length: int | None = None, rest: bytes = b"") -> Change:
    """A safetensors file with this header."""
    data = data if isinstance(data, bytes) else data.encode()
    return content(MODEL, struct.pack("<Q", len(data) if length is None else length) + data + rest)


def entry(**changes: Any) -> Change:
    """A safetensors file in which an entry of the header is another."""

    def change(folder: Path) -> None:
        data = (folder / MODEL).read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        entries = json.loads(data[8 : 8 + size])
        entries["model.norm.weight"] |= changes
        text = json.dumps(entries).encode()
        (folder / MODEL).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return change


_SIZES = [
    "num_hidden_layers",
    "hidden_size",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
]
_HUGE = {"10^9": "1000000000", "10^18": "1" + "0" * 18, "10^400": "1" + "0" * 400, "5000 digits": "1" + "0" * 5000}
CONFIGS = Kind(
    write_model_folder,
    use_model,
    (CONFIG_FILE,),
    refused={
        **{f"{key} is {size}": changed_config(**{key: text}) for key in _SIZES for size, text in _HUGE.items()},
        **{
            f"{key} is {name}": changed_config(**{key: VALUES[name]})
            for key in (*_SIZES, "max_position_embeddings", "rms_norm_eps", "model_type")
            for name in ("zero", "minus one", "true", "a number as a string", "NaN", "a list of lists", "5000 levels")
        },
        "layer_types of 10^5": changed_config(layer_types=json.dumps(["full_attention"] * 100_000)),
        "10^9 layers and their types": changed_config(num_hidden_layers="1000000000", layer_types='["full_attention"]'),
        "180 MB": content(CONFIG_FILE, b'{"a": "' + b"x" * (180 << 20) + b'"}'),
        "a list": content(CONFIG_FILE, "[]"),
        "no JSON": content(CONFIG_FILE, "config"),
        "UTF-16": content(CONFIG_FILE, json.dumps(CONFIG).encode("utf-16")),
        "a key twice": content(CONFIG_FILE, json.dumps(CONFIG)[:-1] + ', "head_dim": 4}'),
        "a surrogate as key": content(CONFIG_FILE, json.dumps(CONFIG)[:-1] + ', "\\udc00": 4}'),
        "factor 1e300": changed_config(rope_parameters='{"rope_type": "linear", "factor": 1e300}'),
        "attention factor 1e300": changed_config(
            rope_parameters='{"rope_type": "yarn", "factor": 2, "attention_factor": 1e300}'
        ),
        "rope_theta 1": changed_config(rope_parameters='{"rope_type": "default", "rope_theta": 1.0}'),
        "a megabyte of factors": changed_config(
            rope_parameters='{"rope_type": "longrope", "short_factor": [%s], "long_factor": [%s]}'
            % (("1," * 250_000 + "1",) * 2)
        ),
    },
)

WEIGHTS = Kind(
    write_model_folder,
    use_model,
    (MODEL,),
    refused={
        "96 MB of {}": header(b'{"a":[' + b"{}," * (32 << 20) + b"{}]}"),
        "99 MB of blanks": header(b"{" + b" " * 99_000_000 + b"}"),
        "a header of 2^63": header("{}", 1 << 63),
        "a header of 2^40": header("{}", 1 << 40),
        "no header": header("", 0),
        "a header beyond the file": header("{}", 3),
        "deep nesting": header("[" * 100_000),
        "an empty object": header("{}"),
        "a string": header('"x"'),
        "metadata that is a list": header('{"__metadata__": []}'),
        "metadata of numbers": header('{"__metadata__": {"a": 1}}'),
        "metadata that is null": header('{"__metadata__": null}'),
        "a surrogate": header('{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', rest=b"\0" * 4),
        "a name of 1 MB": header(
            json.dumps({"x" * 10**6: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}), rest=b"\0" * 4
        ),
        "300,000 tensors": header(
            json.dumps({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(300_000)})
        ),
        "an unknown dtype": entry(dtype="F33"),
        "float64": entry(dtype="F64"),
        "a number as dtype": entry(dtype=7),
        "offsets beyond": entry(data_offsets=[0, 1 << 50]),
        "offsets backwards": entry(data_offsets=[64, 0]),
        "negative offsets": entry(data_offsets=[-64, 0]),
        "one offset": entry(data_offsets=[0]),
        "overlap": entry(data_offsets=[0, 64]),
        "fractions": entry(data_offsets=[0.5, 64.5]),
        "another shape": entry(shape=[4, 4]),
        "a scalar": entry(shape=[]),
        "a huge shape": entry(shape=[1 << 40, 1 << 40]),
        "a shape of 2^64": entry(shape=[1 << 64]),
        "a shape of zero": entry(shape=[0]),
        "a negative shape": entry(shape=[-16]),
        "1000 dimensions": entry(shape=[1] * 1000 + [16]),
        "a pickle": lambda folder: ((folder / MODEL).unlink(), content("pytorch_model.bin", b"\x80\x04cos\n")(folder)),
    },
)


def index(**places: Any) -> Change:
    def change(folder: Path) -> None:
        found = json.loads((folder / INDEX).read_text())
        found["weight_map"] |= {name.replace("__", "."): value for name, value in places.items()}
        (folder / INDEX).write_text(json.dumps(found))

    return change


_NORM = "model__norm__weight"
SHARDS = Kind(
    write_sharded_folder,
    use_model,
    (INDEX, "model-00001-of-00001.safetensors"),
    refused={
        "no map": content(INDEX, "{}"),
        "a list for a map": content(INDEX, '{"weight_map": []}'),
        "deep nesting": content(INDEX, "[" * 100_000),
        **{
            f"a file {name!r}"[:40]: index(**{_NORM: name})
            for name in ("../outside/secret", "/etc/passwd", "", ".", "..", "a\0b", "x" * 300 + ".safetensors", 3, None)
        },
        "a file of surrogates": content(INDEX, '{"weight_map": {"a": "\\ud800.safetensors"}}'),
        "a file that is absent": index(**{_NORM: "other.safetensors"}),
        "a tensor that is absent": index(other="model-00001-of-00001.safetensors"),
        "both": lambda folder: write_model_folder(folder),
        "a million tensors": content(
            INDEX, json.dumps({"weight_map": {f"t{i}": f"{i % 500}.safetensors" for i in range(10**6)}})
        ),
    },
)

GGUF = "model.gguf"


def gguf_file(**keys: Any) -> Change:
    """A GGUF file by llama.cpp's own package, of the model and a byte-level vocabulary."""

    def write(folder: Path) -> None:
        write_model_folder(folder)
        config = CONFIG | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
        (folder / CONFIG_FILE).write_text(json.dumps(config))
        known = {
            "tokenizer__ggml__model": "gpt2",
            "tokenizer__ggml__pre": "gpt-2",
            "tokenizer__ggml__tokens": VOCABULARY,
            "tokenizer__ggml__token_type": [1] * len(ALPHABET) + [3, 3],
            "tokenizer__ggml__merges": ["a b", "t h"],
            "tokenizer__ggml__bos_token_id": 256,
            "tokenizer__ggml__eos_token_id": 257,
        }
        write_reference(folder / GGUF, folder, "llama", **known | keys)
        for name in (MODEL, CONFIG_FILE):
            (folder / name).unlink()

    return write


def use_gguf(folder: Path) -> None:
    use_model(folder / GGUF)
    read_gguf_rope(folder / GGUF)
    use_tokens(load_tokenizer(folder / GGUF))


def use_tokens(tokenizer: Any) -> None:
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == np.int32 and (ids >= 0).all() and (ids < tokenizer.vocab_size).all(), "ids beyond vocab_size"
    tokenizer.decode(ids)
    for number in (tokenizer.bos_id, tokenizer.eos_id):
        assert number is None or 0 <= number < tokenizer.vocab_size, f"special id {number}"


def patched(place: int, data: bytes) -> Change:
    def change(folder: Path) -> None:
        old = (folder / GGUF).read_bytes()
        (folder / GGUF).write_bytes(old[:place] + data + old[place + len(data) :])

    return change


def raw_gguf(*entries: tuple[str, int, bytes], tensors: bytes = b"", count: int = 0) -> Change:
    """A GGUF file of keys, each with the number of its type and its bytes, and descriptions of tensors."""
    head = b"GGUF" + struct.pack("<IQQ", 3, count, len(entries))
    keys = (struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + data for key, kind, data in entries)
    return content(GGUF, head + b"".join(keys) + tensors)


def tensor(name: bytes, *shape: int, kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return struct.pack("<Q", len(name)) + name + sizes + struct.pack("<IQ", kind, offset)


_STRING = struct.pack("<Q", 5) + b"llama"
_NAMED = ("general.architecture", 8, _STRING)
GGUFS = Kind(
    gguf_file(),
    use_gguf,
    (GGUF,),
    refused={
        "another magic": patched(0, b"GGML"),
        **{f"version {number}": patched(4, struct.pack("<I", number)) for number in (0, 1, 4, 1 << 31)},
        **{f"2^{power} tensors": patched(8, struct.pack("<Q", 1 << power)) for power in (24, 31, 60, 63)},
        **{f"2^{power} keys": patched(16, struct.pack("<Q", 1 << power)) for power in (24, 31, 60, 63)},
        "a key of 2^60": patched(24, struct.pack("<Q", 1 << 60)),
        **{
            f"an array of 2^60 of type {kind}": raw_gguf(_NAMED, ("a", 9, struct.pack("<IQ", kind, 1 << 60)))
            for kind in (0, 7, 8, 9, 12, 99)
        },
        "nested arrays": raw_gguf(_NAMED, ("a", 9, struct.pack("<IQ", 9, 1) * 50_000)),
        "a type of 77": raw_gguf(_NAMED, ("a", 77, b"\0" * 8)),
        "no architecture": raw_gguf(),
        "an architecture of 7": raw_gguf(("general.architecture", 4, struct.pack("<I", 7))),
        "a string of 2^63": raw_gguf(("general.architecture", 8, struct.pack("<Q", 1 << 63))),
        "a string that is not UTF-8": raw_gguf(("general.architecture", 8, struct.pack("<Q", 2) + b"\xff\xfe")),
        "a key twice": raw_gguf(_NAMED, _NAMED),
        "a tensor of 2^64": raw_gguf(_NAMED, tensors=tensor(b"a", 1 << 32, 1 << 32), count=1),
        "a tensor of 2^200": raw_gguf(_NAMED, tensors=tensor(b"a", *[1 << 50] * 4), count=1),
        "a tensor of nothing": raw_gguf(_NAMED, tensors=tensor(b"a", 0), count=1),
        "a tensor beyond": raw_gguf(_NAMED, tensors=tensor(b"a", 8, offset=1 << 62), count=1),
        "a tensor of type 1000": raw_gguf(_NAMED, tensors=tensor(b"a", 8, kind=1000), count=1),
        "5 dimensions": raw_gguf(_NAMED, tensors=tensor(b"a", 1, 1, 1, 1, 1), count=1),
        **{
            f"{key.replace('__', '.')} is {value!r}"[:60]: gguf_file(**{key: value})
            for key, values in {
                "attention__head_count": (0, 3, "two", [2], True, 2.0, 1 << 31),
                "attention__head_count_kv": (0, 3, "one", [1]),
                "attention__key_length": (0, 1, 7, "8"),
                "embedding_length": (0, 5, "16", 1 << 31),
                "block_count": (0, 2, "one", (1 << 32) - 1),
                "feed_forward_length": (0, 5, [24]),
                "context_length": (0, "128"),
                "attention__layer_norm_rms_epsilon": (0.0, -1.0, math.nan, math.inf, "1e-5"),
                "rope__freq_base": (0.0, 1.0, -5.0, math.nan, math.inf, "10000"),
                "rope__dimension_count": (0, 4, "8"),
                "rope__scaling__factor": (-1.0, math.nan, math.inf, 3e38, "2"),
                "rope__scaling__type": ("longrope", 3),
                "factors": ([0.0] * 4, [-1.0] * 4, [math.nan] * 4, [1.0] * 3, [math.inf] * 4),
                "general__alignment": (0, 7, "32", 1 << 31),
                "split__count": (2, "1"),
                "rope_jax__provenance": ("{", 3, "[" * 50_000, "[]"),
                "tokenizer__ggml__model": ("wordpiece", 3),
                "tokenizer__ggml__pre": ("other", 3),
                "tokenizer__ggml__tokens": ("abc", [1, 2], ["a", "a"], ["a"]),
                "tokenizer__ggml__token_type": ([1], ["a"], "a"),
                "tokenizer__ggml__merges": ("a b", [1]),
                "tokenizer__ggml__bos_token_id": (258, (1 << 32) - 2, "a", 1.5),
                "unknown__key": (1,),
            }.items()
            for value in values
        },
    },
)

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


FACTORS, ROWS = "factors.json", "factors.csv"


def write_factors(folder: Path) -> None:
    (folder / FACTORS).write_text(json.dumps([1.0, 1.5, 2, 2.5]))
    (folder / ROWS).write_text("1,1.5,2,2.5\n1,1.5,2,2.5\n")
    whole = {"factors": [1.0, 1.5, 2, 2.5], "attention_factor": 1.1, "base": 10000.0, "of": {"model": "a"}}
    (folder / "scale.json").write_text(json.dumps(whole))


def use_factors(name: str) -> Change:
    def read(folder: Path) -> None:
        config = get_config()
        config.rope.factors = str(folder / name)
        scale = solved_method(config, "explicit").scale(Geometry(10000.0, 8, identity(8), layers=2), Measure(64, 128))
        assert np.isfinite(np.asarray(scale.factors)).all() and (np.asarray(scale.factors) > 0).all()
        assert 0 < float(scale.attention_factor) < 1e6

    return read


_LIST, _WHOLE = [1.0, 1.5, 2, 2.5], {"factors": [1.0, 1.5, 2, 2.5], "attention_factor": 1.1}
_NO_FACTOR = [
    "null",
    "true",
    "zero",
    "minus one",
    "minus zero",
    "5000 digits",
    "1e300",
    "1e400",
    "NaN",
    "minus infinity",
    "an empty string",
    "a number as a string",
    "a lone surrogate",
    "an empty list",
    "an empty object",
    "a list of lists",
    "a long list",
    "60 levels",
    "5000 levels",
    "5000 objects",
]
FACTOR_LISTS = Kind(
    write_factors,
    use_factors(FACTORS),
    (FACTORS,),
    refused={
        **{f"a factor is {name}": content(FACTORS, with_value(_LIST, (1,), VALUES[name])) for name in _NO_FACTOR},
        **{f"all is {name}": content(FACTORS, VALUES[name]) for name in _NO_FACTOR},
        "three": content(FACTORS, "[1, 1, 1]"),
        "33 MB": content(FACTORS, b"[" + b"1," * (17 << 20) + b"1]"),
        "rows of other lengths": content(FACTORS, "[[1, 1, 1, 1], [1, 1, 1]]"),
        "three rows": content(FACTORS, json.dumps([_LIST] * 3)),
    },
)
FACTOR_OBJECTS = Kind(
    write_factors,
    use_factors("scale.json"),
    ("scale.json",),
    refused={
        f"{key} is {name}": content("scale.json", with_value(_WHOLE | {"base": 5e3}, (key,), VALUES[name]))
        for key in ("factors", "attention_factor", "base")
        for name in _NO_FACTOR
        if (key, name) != ("attention_factor", "null")
    },
)
FACTOR_ROWS = Kind(
    write_factors,
    use_factors(ROWS),
    (ROWS,),
    refused={
        "a huge field": content(ROWS, "1" * 200_000 + ",1,1,1"),
        "a field of 30 MB": content(ROWS, '"' + "1" * (30 << 20)),
        "words": content(ROWS, "a,b,c,d"),
        "NaN": content(ROWS, "1,nan,1,1"),
        "infinity": content(ROWS, "1,inf,1,1"),
        "1e300": content(ROWS, "1,1e300,1,1"),
        "zero": content(ROWS, "1,0,1,1"),
        "a NUL": content(ROWS, b"1,\0,1,1"),
        "nothing": content(ROWS, "\n\n"),
        "rows of other lengths": content(ROWS, "1,1,1,1\n1,1,1\n"),
        "a million rows": content(ROWS, "1,1,1,1\n" * 1_000_000 + "1,1,1,2\n"),
        "Latin-1": content(ROWS, b"1,\xe9,1,1"),
        "underscores": content(ROWS, "1,x_1,1,1"),
    },
)

USAGE = {
    "energy": [[[1.0, 2.0]]],
    "distances": {"edges": [0, 1, 2], "attention": [[[1.0, 2.0]]]},
    "about": {"model": "a"},
}
USAGES = Kind(
    lambda folder: (folder / "usage.json").write_text(json.dumps(USAGE)),
    lambda folder: (lambda usage: (usage.pair_weights(), usage.distances()))(read_usage(folder / "usage.json")),
    ("usage.json",),
    refused={
        f"energy is {name}": content("usage.json", with_value(USAGE, ("energy", 0, 0), VALUES[name]))
        for name in ("null", "zero", "minus one", "NaN", "5000 digits", "1e400", "a number as a string", "5000 levels")
    },
)

OF = {"vector": "1", "weights": "2"}
ROW = {"digest": "d", "prediction": "text", "score": 0.5, "seconds": 0.1}
KEPT = "qasper.jsonl"


def write_kept(folder: Path) -> None:
    Kept(folder / KEPT, OF).append({"a": ROW, "b": ROW})


def use_kept(folder: Path) -> None:
    rows = read_predictions(Kept(folder / KEPT, OF), {"a": "d", "b": "d"})
    assert all(0 <= row.score <= 1 and 0 <= row.seconds < math.inf and row.prediction.encode() for row in rows.values())


def second_line(line: bytes | str) -> Change:
    def change(folder: Path) -> None:
        with (folder / KEPT).open("ab") as file:
            file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")

    return change


def _row(key: str, text: str) -> str:
    return with_value({"id": "c", **ROW}, (key,), text)


_NO_SCORE = ["null", "true", "minus one", "1.5", "NaN", "1e300", "1e400", "a number as a string", "5000 digits", "7"]
PREDICTIONS = Kind(
    write_kept,
    use_kept,
    (KEPT,),
    refused={
        **{f"a score of {name}": second_line(_row("score", VALUES.get(name, name))) for name in _NO_SCORE},
        **{
            f"a prediction is {name}": second_line(_row("prediction", VALUES[name]))
            for name in ("null", "zero", "a lone surrogate", "an empty list", "5000 levels")
        },
        **{
            f"an id is {name}": second_line(_row("id", VALUES[name]))
            for name in ("null", "zero", "an empty list", "a lone surrogate")
        },
        "an id twice": second_line(json.dumps({"id": "a", **ROW})),
        "seconds without end": second_line(_row("seconds", "Infinity")),
        "17 MB in a line": second_line(_row("prediction", json.dumps("x" * (17 << 20)))),
        "250 MB of brackets": second_line(b"[" * (250 << 20)),
        "not UTF-8": second_line(b'{"id": "\xff"}'),
        "a list": second_line("[]"),
    },
)


def write_scored(folder: Path) -> None:
    row = {"pred": "a", "answers": ["a"], "all_classes": None, "length": 10}
    with gzip.open(folder / "qasper.jsonl.gz", "wt") as file:
        file.write(json.dumps(row) + "\n")
    (folder / "trec.jsonl").write_text(json.dumps(row | {"all_classes": ["a", "b"]}) + "\n")


def zipped(data: bytes) -> Change:
    return lambda folder: (folder / "qasper.jsonl.gz").write_bytes(gzip.compress(data, 1))


SCORED = Kind(
    write_scored,
    lambda folder: [0 <= row.score <= 1 or math.nan for rows in read_scored(folder).values() for row in rows],
    ("trec.jsonl", "qasper.jsonl.gz"),
    refused={
        "250 MB of [] zipped": zipped(b"[]" * (125 << 20)),
        "250 MB of lists": zipped(b'{"a": [' + b"[]," * (5 << 20) + b"[]]}\n"),
        "a gigabyte of blanks": zipped(b" " * (1 << 28)),
        "deep nesting": zipped(b'{"a":' * 10**6),
        "no zip": content("qasper.jsonl.gz", "text"),
        "another set": content("other.jsonl", "{}"),
        "one set twice": content("qasper.jsonl", "{}"),
        "answers of numbers": content("trec.jsonl", '{"pred": "a", "answers": [1], "length": 1}'),
        "a length of 1.5": content("trec.jsonl", '{"pred": "a", "answers": ["a"], "length": 1.5}'),
        "surrogates": content("trec.jsonl", '{"pred": "\\ud800", "answers": ["a"], "length": 1}'),
    },
)


def write_benchmarks(folder: Path) -> None:
    row = {"input": "q", "context": "c", "answers": ["a"], "all_classes": None, "length": 10, "_id": "1"}
    (folder / "qasper_e.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "train.jsonl").write_text('{"text": "a", "label": "b"}\n')
    (folder / "train_5500.label").write_text("DESC:manner How did it happen ?\n")
    paragraph = {"context": "c", "qas": [{"question": "q", "answers": [{"text": "a"}], "is_impossible": False}]}
    (folder / "dev-v2.0.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}]}))
    question = {"question": "q", "answer": "a", "context": [["t", ["One.", "Two."]]], "supporting_facts": [["t", 0]]}
    (folder / "hotpot.json").write_text(json.dumps([question]))
    (folder / "essays.json").write_text('{"text": "One sentence. Another one."}')
    story = "1 Mary moved to the bathroom.\n2 Where is Mary? \tbathroom\t1\n"
    (folder / "qa1_single-supporting-fact_test.txt").write_text(story)


def use_benchmarks(folder: Path) -> None:
    read_rows(folder, "qasper")
    read_examples(folder / "train.jsonl")
    read_examples(folder / "train_5500.label")
    read_squad(folder / "dev-v2.0.json")
    read_hotpotqa(folder / "hotpot.json")
    read_haystack(folder / "essays.json", 100)
    read_stories(folder, "qa1")


_DATA = (
    "qasper_e.jsonl",
    "train.jsonl",
    "train_5500.label",
    "dev-v2.0.json",
    "hotpot.json",
    "essays.json",
    "qa1_single-supporting-fact_test.txt",
)
BENCHMARKS = Kind(
    write_benchmarks,
    use_benchmarks,
    _DATA,
    refused={
        f"{name}: {what}": content(name, data)
        for name in _DATA
        for what, data in {
            "brackets": "[" * 100_000,
            "not UTF-8": b"\xff\xfe{}",
            "null": "null",
            "strings": '["a", "b"]',
            "an object of lists": '{"data": [[]], "text": [], "label": 1, "input": []}',
            "a surrogate": '{"text": "\\ud800", "label": "a", "data": "\\ud800"}',
        }.items()
    },
)


def write_texts(folder: Path) -> None:
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text(TEXT * 3)
    (folder / "texts" / "b.jsonl").write_text(json.dumps({"text": TEXT}) + "\n" + json.dumps({"text": "b"}) + "\n")
    with gzip.open(folder / "texts" / "c.txt.gz", "wt") as file:
        file.write(TEXT)


def use_texts(folder: Path) -> None:
    """Prepared, and read from the prepared copy."""
    for _ in range(2):
        splits = open_corpus("text_folder", folder / "texts", folder / "cache")
        for source in splits.values():
            for i in range(len(source)):
                source[i]["text"].encode()


def prepared_and(change: Change) -> Change:
    """A change of what a corpus was prepared as."""

    def prepare(folder: Path) -> None:
        use_texts(folder)
        change(next((folder / "cache").glob("text_folder-*")))

    return prepare


def each_file(action: Callable[[Path], object], pattern: str = "*") -> Change:
    return lambda place: [action(path) for path in sorted(place.rglob(pattern)) if path.is_file()]


CORPORA = Kind(
    write_texts,
    use_texts,
    ("texts/b.jsonl", "texts/a.txt", "texts/c.txt.gz"),
    refused={
        "no text": lambda folder: [path.unlink() for path in (folder / "texts").iterdir()],
        "a link out": lambda folder: (folder / "texts" / "d.txt").symlink_to("../../outside/secret"),
        "a folder that is a link": lambda folder: (folder / "texts" / "d").symlink_to("../../outside"),
        "deep nesting": content("texts/b.jsonl", '{"text":' * 100_000),
        "5000 digits": content("texts/b.jsonl", "1" * 5000),
        "surrogates": content("texts/b.jsonl", '{"text": "\\ud800"}'),
        "Latin-1": content("texts/a.txt", "caf\u00e9".encode("latin-1")),
    },
    either={
        "a bomb": lambda folder: (folder / "texts" / "c.txt.gz").write_bytes(gzip.compress(b"a" * (300 << 20), 1)),
        "one character": lambda folder: [
            (folder / "texts" / "b.jsonl").unlink(),
            (folder / "texts" / "c.txt.gz").unlink(),
            (folder / "texts" / "a.txt").write_text("a"),
        ],
        "a prepared copy of nothing": prepared_and(each_file(lambda path: path.write_bytes(b""))),
        "a prepared copy without dataset_info": prepared_and(each_file(Path.unlink, "dataset_info.json")),
        "a prepared copy with another dataset_info": prepared_and(
            each_file(lambda path: path.write_text("[" * 9999), "dataset_info.json")
        ),
        "a shard gone": prepared_and(each_file(Path.unlink, "*array_record*")),
        "a shard cut": prepared_and(each_file(lambda path: path.write_bytes(path.read_bytes()[:50]), "*array_record*")),
    },
)

SCALE = {"factors": [1.0, 2.0], "attention_factor": 1.0, "of": {"model": "m"}}
RUN_CONFIG = {"seed": 0, "rope": {"method": "pi"}, "eval": {"lengths": [1, 2]}}


def write_run(folder: Path) -> None:
    run = RunFolder(folder)
    run.claim(RUN_CONFIG, "digest")
    run.at("methods/pi").record("scale", lambda: SCALE)
    run.at("methods/pi").record("before", lambda: SCALE)


def use_run(folder: Path) -> None:
    run = RunFolder(folder)
    with run.locked():
        run.check(RUN_CONFIG)
        run.check_texts("digest")
        for name in ("scale", "before"):
            assert run.at("methods/pi").recorded(name) in (None, SCALE), "another record"
            assert run.at("methods/pi").drop_outdated(name, SCALE["of"]) == []


_RECORDS = ("methods/pi/scale.json", "config.json", "texts.json", "methods/pi/before.json")
RUNS = Kind(
    write_run,
    use_run,
    _RECORDS,
    refused={
        f"{name}: {what}": content(name, data)
        for name in _RECORDS
        for what, data in {
            "cut": '{"factors": [1.0',
            "a list": "[]",
            "null": "null",
            "not UTF-8": b"\xff",
            "brackets": "[" * 100_000,
            "digits": "1" * 5000,
            "a surrogate": '{"\\ud800": 1}',
            "another": '{"seed": 1, "checksum": "a"}',
            "a checksum of 1": '{"checksum": 1}',
        }.items()
    },
    either={
        "a lock that is a folder": lambda folder: ((folder / ".lock").unlink(), (folder / ".lock").mkdir()),
        "a lock that is a link": lambda folder: ((folder / ".lock").unlink(), link(".lock", ".lock")(folder)),
        "methods that is a file": lambda folder: (
            os.rename(folder / "methods", folder / "other"),
            (folder / "methods").write_text(""),
        ),
        "methods that is a link": lambda folder: (
            os.rename(folder / "methods", folder / "other"),
            (folder / "methods").symlink_to("methods"),
        ),
    },
)


def link(name: str, target: str) -> Change:
    return lambda folder: (folder / name).symlink_to(target)


EXPORTS = Kind(
    lambda folder: (write_model_folder(folder), write_tokenizer_folder(folder)),
    export_beside,
    (TOKENIZER_CONFIG, CONFIG_FILE, MODEL),
    refused={
        f"{name} leads out": link(name, "../../outside/secret")
        for name in ("generation_config.json", "tokenizer.model", "added_tokens.json", "chat_template.jinja", "LICENSE")
        if name != "LICENSE"
    },
    either={
        "LICENSE leads out": link("LICENSE", "../../outside/secret"),
        "a note leads out": link("NOTICE.txt", "../../outside/secret"),
        "the weights lead to themselves": lambda folder: ((folder / MODEL).unlink(), link(MODEL, MODEL)(folder)),
    },
)

PATHS: dict[str, tuple[Callable[[str], object], str]] = {
    "read_model": (check_model, "{}"),
    "read_gguf_rope": (lambda path: read_gguf_rope(Path(path)), "{}.gguf"),
    "load_tokenizer": (load_tokenizer, "{}"),
    "a sentencepiece model": (load_tokenizer, "{}.model"),
    "factors": (lambda path: use_factors(path)(Path("/")), "{}.json"),
    "a CSV of factors": (lambda path: use_factors(path)(Path("/")), "{}.csv"),
    "read_usage": (lambda path: read_usage(Path(path)), "{}"),
    "open_corpus": (lambda path: open_corpus("text_folder", path, "cache"), "{}"),
    "pg19": (lambda path: open_corpus("pg19", path, "cache"), "{}"),
    "RunFolder": (lambda path: RunFolder(Path(path)).check({}), "{}"),
    "a locked run": (lambda path: RunFolder(Path(path)).locked().__enter__(), "{}"),
    "rescale_folder": (
        lambda path: rescale_folder(path, "copy", identity(8), context=256, provenance={}),
        "{}",
    ),
    "read_scored": (lambda path: read_scored(Path(path)), "{}"),
    "read_rows": (lambda path: read_rows(Path(path), "qasper"), "{}"),
    "read_examples": (lambda path: read_examples(Path(path)), "{}"),
    "read_squad": (lambda path: read_squad(Path(path)), "{}"),
    "read_haystack": (lambda path: read_haystack(Path(path), 9), "{}"),
    "read_stories": (lambda path: read_stories(Path(path), "qa1"), "{}"),
}
_NAMES = {
    "300 characters": "x" * 300,
    "5000 characters": "/".join(["x" * 200] * 25),
    "a NUL": "a\0b",
    "no UTF-8": "a\udc80b",
    "no such file": "nowhere",
    "a link to itself": "loop",
    "below a link to itself": "loop/a",
    "below a file": "file/a",
    "a device": "zero",
    "a pipe": "pipe",
}


def path_input(random: Random) -> Input:
    """A name that no file has, or one that is none, for every function that takes a path."""
    what, (read, pattern) = random.choice(list(PATHS.items()))
    name = random.choice(list(_NAMES))

    def prepare(folder: Path) -> None:
        (folder / "file").write_text("")
        for made, target in (("loop", None), ("zero", "/dev/zero")):
            (folder / pattern.format(made)).symlink_to(target or pattern.format(made))
            if not (folder / made).is_symlink():
                (folder / made).symlink_to(target or made)
        os.mkfifo(folder / pattern.format("pipe"))

    def attempt(folder: Path) -> None:
        os.chdir(folder)
        read(str(folder / pattern.format(_NAMES[name])))

    if what in ("RunFolder", "a locked run") and name == "a NUL":  # no command line can hold one
        name = "a link to itself"
    new = what in ("RunFolder", "a locked run") and name in ("no such file",)
    return Input("paths", f"{what}: {name}", prepare, attempt, "either" if new else "refused")


def field_input(random: Random) -> Input:
    """A field of the config with a value that it cannot have, or one at its bounds."""
    defaults = {field.name: field.default for field in FIELDS}
    field = random.choice(FIELDS)
    kind = field.element if isinstance(field.default, tuple) else type(field.default)
    wrong: dict[type, list] = {
        int: ["1", True, 1.5, None, [1], math.nan, math.inf, 2**31, 2**63, 10**400, -(10**400), 10**5000, b"1", 1j],
        float: ["1", False, None, [1.0], math.nan, math.inf, -math.inf, 1e300, -1e300, 10**400, 10**5000, 1j],
        str: [1, None, b"a", ["a", 1], True, 1.5],
        bool: [0, 1, "true", None, 1.0],
    }
    if field.name == "seed":
        wrong[int] = [value for value in wrong[int] if value != 2**31]
    values = [(value, "refused") for value in wrong[kind]]
    check = field.check
    if check and check.choices:
        values += [(value, "refused") for value in ("nothing", "\ud800", "x" * 10**6)]
        values += [(value, "accepted") for value in check.choices]
    elif check:
        step = 1 if kind is int else 1e-6
        for bound, outside in ((check.least, -step), (check.most, step), (check.above, 0), (check.below, 0)):
            if bound is not None and not (check.zero and bound + outside == 0):
                values.append((kind(bound + outside * max(1, abs(bound))), "refused"))
        values += [(kind(bound), "accepted") for bound in (check.least, check.most) if bound is not None]
        values += [(kind(0), "accepted")] if check.zero else []
    value, answer = random.choice(values)
    if isinstance(field.default, tuple):
        value = random.choice(((value,), [value] * 3, (*field.default, value)))
    return Input(
        "fields",
        f"{field.name} is {_shown(value)}",
        lambda folder: None,
        lambda folder: check_fields({**defaults, field.name: value}),
        answer,
    )


def _shown(value: Any) -> str:
    try:
        return repr(value)[:60]
    except ValueError:
        return "an integer of thousands of digits"


KINDS = {
    "config.json": CONFIGS,
    "safetensors": WEIGHTS,
    "shards": SHARDS,
    "GGUF": GGUFS,
    "tokenizer.json": TOKENIZERS,
    "sentencepiece": PIECES,
    "factor lists": FACTOR_LISTS,
    "factor objects": FACTOR_OBJECTS,
    "factor rows": FACTOR_ROWS,
    "usages": USAGES,
    "predictions": PREDICTIONS,
    "scored": SCORED,
    "benchmarks": BENCHMARKS,
    "corpora": CORPORA,
    "runs": RUNS,
    "exports": EXPORTS,
}
DRAWN = {"paths": path_input, "fields": field_input}


def input_of(seed: int, number: int) -> Input:
    """Input `number` of a seed. Classes take turns; within one, what a person thought of, and random damage."""
    names = [*KINDS, *DRAWN]
    kind, turn = names[number % len(names)], number // len(names)
    random = Random(f"{seed} {kind} {turn}")
    if kind in DRAWN:
        return DRAWN[kind](random)
    found = KINDS[kind]
    thought = [(name, change, "refused") for name, change in found.refused.items()]
    thought += [(name, change, "either") for name, change in found.either.items()]
    thought += [(name, change, "either") for file in found.files for name, change in no_file(file).items()]
    Random(f"{seed} {kind}").shuffle(thought)
    if turn % 3 and turn * 2 // 3 < len(thought):
        name, change, answer = thought[turn * 2 // 3]
        return Input(kind, name, change, found.read, answer)
    return _random_damage(random, kind, found)


def _random_damage(random: Random, kind: str, found: Kind) -> Input:
    file, as_json = random.choice(found.files), random.random() < 0.6

    def change(folder: Path) -> None:
        path = folder / file
        if path.name.endswith(".gz"):
            text = gzip.decompress(path.read_bytes())
            done = (
                gzip.compress(damaged_bytes(random, text)[1])
                if as_json
                else damaged_bytes(random, path.read_bytes())[1]
            )
        elif as_json and path.suffix == ".safetensors":
            data = path.read_bytes()
            size = struct.unpack("<Q", data[:8])[0]
            text = damaged_json(random, data[8 : 8 + size].decode())[1].encode()
            done = struct.pack("<Q", len(text)) + text + data[8 + size :]
        elif as_json and path.suffix == ".json":
            done = damaged_json(random, path.read_text())[1].encode()
        elif as_json and path.suffix == ".jsonl":
            lines = path.read_text().splitlines()
            place = random.randrange(len(lines))
            lines[place] = damaged_json(random, lines[place])[1]
            done = "\n".join([*lines, ""]).encode()
        else:
            done = damaged_bytes(random, path.read_bytes())[1]
        path.write_bytes(done)

    return Input(kind, f"random damage of {file}", change, found.read, "either")


def warm_up(folder: Path) -> Path:
    """Writes the valid files of every class and reads them, so that all modules are there."""
    for name, kind in KINDS.items():
        (folder / name).mkdir(parents=True)
        kind.make(folder / name)
        if name not in ("exports", "sentencepiece", "corpora"):
            kind.read(folder / name)
    return folder
