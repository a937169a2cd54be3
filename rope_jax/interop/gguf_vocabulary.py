"""A Hugging Face folder's tokenizer as llama.cpp's metadata: which of llama.cpp's own tokenizers it is, and its table.

Two kinds are known: sentencepiece BPE with bytes as a fallback ("llama"), and byte-level BPE ("gpt2"), which splits
text by one of the regular expressions that llama.cpp knows by name.
"""

import re
from pathlib import Path

from rope_jax.data.gguf_tokenizer import GPT2, SMOLLM, SPLITS
from rope_jax.errors import InputError
from rope_jax.files import read_json_object

_ADVICE = "set `vocabulary` to False to leave the tokenizer out, or convert with llama.cpp's own script"


def add_vocabulary(writer, folder: Path, vocab_size: int) -> None:
    """Adds the tokenizer of a folder to a `gguf.GGUFWriter` that has written nothing yet.

    Ids without a token are filled up to `vocab_size`, the rows of the embedding.
    """
    try:
        _add_vocabulary(writer, folder, vocab_size)
    except InputError:
        raise
    except (ValueError, AttributeError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"{folder}: its tokenizer files cannot be read ({error}): {_ADVICE}") from None


def _add_vocabulary(writer, folder: Path, vocab_size: int) -> None:
    import gguf

    merges = False
    if (folder / "tokenizer.json").is_file():
        tokenizer = read_json_object(folder / "tokenizer.json")
        model = tokenizer.get("model") or {}
        if model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
            raise InputError(
                f"{folder / 'tokenizer.json'}: llama.cpp's tokenizers for these models are BPE, and this one is "
                f"{model.get('type')!r}: {_ADVICE}"
            )
        if model.get("byte_fallback"):
            kind, splits, tokens = "llama", "default", _with_byte_fallback(tokenizer)
        elif _is_bytes(tokenizer):
            kind, splits, tokens = "gpt2", GPT2, _byte_level(tokenizer)
            # llama.cpp asks for merges; this one is of symbols that nothing makes. How text is split matters to none.
            writer.add_token_merges(["\u0100\u0100 \u0100\u0100"])
        else:
            kind, splits, tokens = "gpt2", _split_name(folder, tokenizer), _byte_level(tokenizer)
            merges = True
    elif (folder / "tokenizer.model").is_file():
        kind, splits, tokens = "llama", "default", _sentencepiece(writer, folder)
    else:
        raise InputError(f"{folder} has neither tokenizer.json nor tokenizer.model: {_ADVICE}")

    if tokens and max(tokens) >= vocab_size:
        raise InputError(f"{folder}: the tokenizer has ids up to {max(tokens)}, and the model only {vocab_size} rows")
    rows = [tokens.get(i, (f"[PAD{i}]", 0.0, "UNUSED")) for i in range(vocab_size)]
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(splits)
    writer.add_token_list([text for text, _, _ in rows])
    if kind == "llama":
        writer.add_token_scores([score for _, score, _ in rows])
    writer.add_token_types([int(gguf.TokenType[token_type]) for _, _, token_type in rows])
    gguf.SpecialVocab(folder, load_merges=merges, n_vocab=vocab_size).add_to_gguf(writer, quiet=True)


def _added(tokenizer) -> dict[int, tuple[str, float, str]]:
    """Tokens beside the model's: id -> text, score, and name of a `gguf.TokenType`."""
    return {
        entry["id"]: (entry["content"], -1000.0, "CONTROL" if entry.get("special") else "USER_DEFINED")
        for entry in tokenizer.get("added_tokens") or []
    }


def _with_byte_fallback(tokenizer) -> dict[int, tuple[str, float, str]]:
    """Sentencepiece BPE as the tokenizers library has it: merges by rank, where llama.cpp merges by score."""
    model = tokenizer["model"]
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model.get("merges") or []):
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    tokens = {}
    for text, number in model["vocab"].items():
        unknown_or_normal = "UNKNOWN" if text == model.get("unk_token") else "NORMAL"
        kind = "BYTE" if re.fullmatch("<0x[0-9A-F]{2}>", text) else unknown_or_normal
        tokens[number] = (text, -float(ranks.get(text, len(ranks))), kind)
    unknown = model["vocab"].get(model.get("unk_token"))
    return tokens | {number: entry for number, entry in _added(tokenizer).items() if number != unknown}


def _byte_level(tokenizer) -> dict[int, tuple[str, float, str]]:
    return {number: (text, 0.0, "NORMAL") for text, number in tokenizer["model"]["vocab"].items()} | _added(tokenizer)


def _is_bytes(tokenizer) -> bool:
    """Whether the tokens are the 256 bytes and nothing merges."""
    return not tokenizer["model"].get("merges") and sorted(tokenizer["model"]["vocab"].values()) == list(range(256))


def _split_name(folder, tokenizer) -> str:
    steps = tokenizer.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return GPT2
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
        return SMOLLM
    if kinds == ["Split", "ByteLevel"]:
        pattern = (steps[0].get("pattern") or {}).get("Regex")
        found = next((name for name, split in SPLITS.items() if split == pattern), None)
        if found:
            return found
    raise InputError(
        f"{folder / 'tokenizer.json'}: it splits text in a way that is not among those known here as llama.cpp's "
        f"({', '.join((*SPLITS, GPT2, SMOLLM))}): {_ADVICE}"
    )


def _sentencepiece(writer, folder) -> dict[int, tuple[str, float, str]]:
    import gguf
    import sentencepiece

    file = folder / "tokenizer.model"
    try:
        vocabulary = gguf.vocab.SentencePieceVocab(folder)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"{file} cannot be read ({error}): {_ADVICE}") from None
    tokens = dict(enumerate((str(text, "utf-8"), score, kind.name) for text, score, kind in vocabulary.all_tokens()))
    # BPE numbers its pieces 0, -1, -2, ...; a unigram model has logarithms of probabilities.
    if any(score != int(score) for _, score, kind in tokens.values() if kind == "NORMAL"):
        raise InputError(f"{file} is a unigram model, and llama.cpp's tokenizer for these models is BPE: {_ADVICE}")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(file)).encode("x", out_type=str)
    writer.add_add_space_prefix(bool(pieces) and pieces[0].startswith("\u2581"))
    return tokens
