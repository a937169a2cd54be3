"""The tokenizer in a GGUF file, as files that transformers loads."""

from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2

from rope_jax.data.huggingface_tokenizer import write_tokenizer
from rope_jax.data.sentencepiece_tokenizer import huggingface_equivalent
from rope_jax.errors import InputError
from rope_jax.gguf_reader import GgufFile, read_gguf

_protobuf: Any = sentencepiece_model_pb2  # generated, without types

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

# llama.cpp's name of a way to split text before byte-pair encoding -> the regular expression of a tokenizer.json.
SPLITS = {
    "llama-bpe": rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_REST}",
    "tekken": (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
# GPT-2's regular expression, which the tokenizers library has built in; SmolLM's splits digits before it.
GPT2, SMOLLM = "gpt-2", "smollm"
_SYNONYMS = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
# Of these, llama.cpp takes a piece of text that is a token whole, and begins with BOS unless the file says otherwise.
_WHOLE = ("llama-bpe", "tekken")
# Its own tokenizer.json composes characters first, for which GGUF has no key.
_COMPOSES = ("qwen2",)

# Token types, which are sentencepiece's.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_NO_TOKEN = 0xFFFFFFFF


def write_gguf_tokenizer(file: Path, folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`, and for a sentencepiece model `tokenizer.model`.

    A GGUF file without a tokenizer gives no files, one with a tokenizer that has no equivalent here an `InputError`.
    """
    found = read_gguf(file)
    kind = _key(found, "model", "no_vocab")
    if kind in ("no_vocab", "none"):
        return
    tokens: list[str] = _list(found, "tokens", str)
    types = _list(found, "token_type", int, len(tokens)) if _key(found, "token_type") else [NORMAL] * len(tokens)
    if len(set(tokens)) != len(tokens):
        raise _error(found, "a token is there twice")
    named = {name: _token(found, tokens, name) for name in ("bos", "eos", "unknown", "padding")}
    match kind:
        case "gpt2":
            split = _split(found)
            tokenizer, begins = _byte_pairs(found, tokens, split), split in _WHOLE
        case "llama":
            tokenizer, begins = _sentencepiece(found, list(zip(tokens, types)), named, folder), True
        case _:
            raise _error(found, f"its kind is {str(kind)[:40]!r}, and 'gpt2' and 'llama' are known here")
    tokenizer.add_tokens(
        [tokenizers.AddedToken(token, normalized=False) for token, kind in zip(tokens, types) if kind == USER_DEFINED]
    )
    config = {
        "bos_token": named["bos"] and named["bos"][0],
        "eos_token": named["eos"] and named["eos"][0],
        "unk_token": named["unknown"] and named["unknown"][0],
        "pad_token": named["padding"] and named["padding"][0],
    }
    template = found.values.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    write_tokenizer(
        folder,
        tokenizer,
        special=[token for token, kind in zip(tokens, types) if kind in (CONTROL, UNKNOWN)],
        bos=named["bos"] if _key(found, "add_bos_token", begins) is True else None,
        eos=named["eos"] if _key(found, "add_eos_token", False) is True else None,
        config={key: value for key, value in config.items() if value is not None},
    )


def _byte_pairs(found: GgufFile, tokens: list[str], split: str) -> tokenizers.Tokenizer:
    """Byte-level byte-pair encoding."""
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = []
    for merge in _list(found, "merges", str) if _key(found, "merges") else ():
        left, _, right = merge.partition(" ")
        # A merge of what is no token never happens, and the library refuses it.
        if {left, right, left + right} <= vocabulary.keys():
            merges.append((left, right))
    bpe = tokenizers.models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split in _WHOLE)
    tokenizer, steps = tokenizers.Tokenizer(bpe), tokenizers.pre_tokenizers
    if split in SPLITS:
        splitting = [
            steps.Split(tokenizers.Regex(SPLITS[split]), "isolated"),
            steps.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    else:
        digits = [steps.Digits(individual_digits=True)] if split == SMOLLM else []
        splitting = [*digits, steps.ByteLevel(add_prefix_space=False, use_regex=True)]
    tokenizer.pre_tokenizer = steps.Sequence(splitting)
    if split in _COMPOSES:
        tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def _split(found: GgufFile) -> str:
    given = _key(found, "pre", "")
    split = _SYNONYMS.get(given, given) if isinstance(given, str) else ""
    known = (*SPLITS, GPT2, SMOLLM)
    if split not in known:
        raise _error(
            found, f"tokenizer.ggml.pre is {str(given)[:40]!r}, and {', '.join((*known, *_SYNONYMS))} are known here"
        )
    return split


def _sentencepiece(
    found: GgufFile, pieces: list[tuple[str, int]], named: dict[str, tuple[str, int] | None], folder: Path
) -> tokenizers.Tokenizer:
    """Writes the model that the file was converted from, as far as it is known, and gives the equivalent."""
    scores = _list(found, "scores", float, len(pieces))
    model = _protobuf.ModelProto()
    for (piece, kind), score in zip(pieces, scores):
        if kind not in range(NORMAL, BYTE + 1):
            raise _error(found, f"token type {kind} is not known")
        model.pieces.add(piece=piece, score=score, type=kind)
    trainer = model.trainer_spec
    # Byte-pair models number their pieces 0, -1, -2, ...; unigram models have logarithms of probabilities.
    unigram = any(score != int(score) for (_, kind), score in zip(pieces, scores) if kind == NORMAL)
    trainer.model_type = trainer.UNIGRAM if unigram else trainer.BPE
    trainer.byte_fallback = any(kind == BYTE for _, kind in pieces)
    for field, name in (("unk_piece", "unknown"), ("bos_piece", "bos"), ("eos_piece", "eos"), ("pad_piece", "padding")):
        token = named[name]
        if token is not None:
            setattr(trainer, field, token[0])
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = _key(found, "add_space_prefix", True) is True
    model.normalizer_spec.remove_extra_whitespaces = _key(found, "remove_extra_whitespaces", False) is True
    tokenizer = huggingface_equivalent(model, found.path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    return tokenizer


def _key(found: GgufFile, name: str, default: Any = None) -> Any:
    return found.values.get(f"tokenizer.ggml.{name}", default)


def _list(found: GgufFile, name: str, kind: type, length: int | None = None) -> list:
    values = _key(found, name)
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise _error(found, f"tokenizer.ggml.{name} is no list of {kind.__name__}")
    if not values or length not in (None, len(values)):
        raise _error(found, f"tokenizer.ggml.{name} has {len(values)} entries" + (f" for {length}" if length else ""))
    return values


def _token(found: GgufFile, tokens: list[str], name: str) -> tuple[str, int] | None:
    number = _key(found, f"{name}_token_id")
    if number is None or number == _NO_TOKEN:
        return None
    if type(number) is not int or not 0 <= number < len(tokens):
        raise _error(found, f"tokenizer.ggml.{name}_token_id is {str(number)[:40]} of {len(tokens)} tokens")
    return tokens[number], number


def _error(found: GgufFile, why: str) -> InputError:
    return InputError(
        f"the tokenizer in {found.path} cannot be used ({why}): convert the model again, or use its Hugging Face folder"
    )
