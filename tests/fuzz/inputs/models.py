"""Model folders: configs, weights, and shards with their index."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from safetensors.numpy import save_file

from rope_jax.interop.huggingface import check_model, read_model
from rope_jax.interop.new_folder import rescale_folder
from rope_jax.rope.embedding import identity
from tests.fuzz.damage import VALUES, Change
from tests.fuzz.inputs.kinds import Kind

Content = bytes | str | Callable[[], bytes | str]

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
    """JSON texts instead of values of config.json."""

    def change(folder: Path) -> None:
        text = json.dumps({**CONFIG, **{key: f"\0{key}" for key in changes}})
        for key, value in changes.items():
            text = text.replace(json.dumps(f"\0{key}"), value)
        (folder / CONFIG_FILE).write_text(text)

    return change


def _bytes(data: Content) -> bytes:
    data = data() if callable(data) else data
    return data if isinstance(data, bytes) else data.encode()


def content(name: str, data: Content) -> Change:
    """A file with this content; what is large is made when it is written."""
    return lambda folder: (folder / name).write_bytes(_bytes(data))


def header(data: Content, length: int | None = None, rest: bytes = b"") -> Change:
    """A safetensors file with this header."""

    def whole() -> bytes:
        text = _bytes(data)
        return struct.pack("<Q", len(text) if length is None else length) + text + rest

    return content(MODEL, whole)


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
        "180 MB": content(CONFIG_FILE, lambda: b'{"a": "' + b"x" * (180 << 20) + b'"}'),
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
        "96 MB of {}": header(lambda: b'{"a":[' + b"{}," * (32 << 20) + b"{}]}"),
        "99 MB of blanks": header(lambda: b"{" + b" " * 99_000_000 + b"}"),
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
            lambda: json.dumps(
                {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(300_000)}
            )
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
            INDEX, lambda: json.dumps({"weight_map": {f"t{i}": f"{i % 500}.safetensors" for i in range(10**6)}})
        ),
    },
)
