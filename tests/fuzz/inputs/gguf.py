"""GGUF files, with tokenizer."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.interop.gguf_files import read_gguf_rope
from tests.fuzz.damage import Change
from tests.fuzz.inputs.kinds import TEXT, Kind
from tests.fuzz.inputs.models import (
    ALPHABET,
    CONFIG,
    CONFIG_FILE,
    MODEL,
    VOCABULARY,
    content,
    use_model,
    write_model_folder,
)
from tests.interop.gguf_writing import write_reference

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
