"""Tokenizers in Hugging Face folders, read and written."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from rope_jax.data.charsmap import check_charsmap
from rope_jax.data.recall import Symbols, named_symbols
from rope_jax.errors import InputError
from rope_jax.files import LARGEST, check_inside, check_regular, read_json

# Data only. Python files in a folder are neither run nor copied.
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


class HuggingFaceTokenizer:
    """A tokenizer that transformers loads from a folder, without the network and without running code from it."""

    def __init__(self, folder: Path):
        # Importing transformers takes seconds, and the other tokenizers do without.
        from transformers import AutoTokenizer

        _check_files(folder)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            # Some vocabularies load, and fail at the first text that they lack a token for, or drop all text.
            tokenizer.encode("\0 \u00e9 \u4f60\U0001f600\U0010fffd", add_special_tokens=False, verbose=False)
            if tokenizer.get_vocab().keys() <= tokenizer.get_added_vocab().keys():
                raise ValueError("it has no token for text")
            self.vocab_size: int = max(tokenizer.get_vocab().values()) + 1
            if self.vocab_size >= 1 << 31:
                raise ValueError(f"its largest id is {self.vocab_size - 1}, and ids are int32")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # The tokenizers package raises bare Exception, and panics.
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"transformers cannot load the tokenizer in {folder} ({reason}); it must be complete and of a class "
                "that transformers itself has (code in the folder is never run)"
            ) from error
        self.folder = folder
        self._tokenizer: Any = tokenizer
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            # A tokenizer.json may ask for truncation and padding, which would change documents silently.
            self._backend.no_truncation()
            self._backend.no_padding()
            self._backend.encode_special_tokens = True
        self.bos_id: int | None = self._tokenizer.bos_token_id
        self.eos_id: int | None = self._tokenizer.eos_token_id
        self.symbols: Symbols | None = named_symbols(self._tokenizer.get_vocab())

    def encode(self, text: str) -> np.ndarray:
        if self._backend is not None:
            # transformers would warn about texts longer than its config's maximum.
            ids = self._backend.encode(text, add_special_tokens=False).ids
        else:
            ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return np.asarray(ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        # `clean_up_tokenization_spaces` would drop spaces before full stops.
        return self._tokenizer.decode(
            [int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def save(self, folder: str | Path) -> None:
        """Copies the tokenizer's data files byte for byte."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            if (self.folder / name).exists():
                check_inside(self.folder, self.folder / name)
                copy_file(self.folder / name, Path(folder) / name)


def _check_files(folder: Path) -> None:
    """Checks what the tokenizers package does not survive, and what it would wait for without end."""
    for name in _FILES:
        if os.path.lexists(folder / name):
            if not os.path.isfile(folder / name):
                raise InputError(f"{folder / name} is not a regular file: download it again")
            check_regular(folder / name, LARGEST)
    if not (folder / "tokenizer.json").is_file():
        return
    waiting: list = [read_json(folder / "tokenizer.json")]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.get("type") == "Precompiled":
                check_charsmap(str(folder / "tokenizer.json"), value.get("precompiled_charsmap"))
            waiting += [inner for key, inner in value.items() if key not in ("vocab", "merges")]
        elif isinstance(value, list):
            waiting += value


def copy_file(source: Path, target: Path) -> None:
    """Copies a file, unless it is the target."""
    if not (target.exists() and source.samefile(target)):
        shutil.copyfile(source, target)


def write_tokenizer(
    folder: Path,
    tokenizer: tokenizers.Tokenizer,
    *,
    special: Sequence[str],
    bos: tuple[str, int] | None,
    eos: tuple[str, int] | None = None,
    config: Mapping[str, Any],
) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`, from which `AutoTokenizer` gives the same ids.

    Like LLaMA's tokenizer, it adds BOS and EOS unless called with `add_special_tokens=False`.

    Args:
        tokenizer: model, normaliser and decoder.
        special: special tokens.
        bos: the one that is put in front of a text, and its id, or None.
        eos: the one that is put after it, or None.
        config: further fields of `tokenizer_config.json`.
    """
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in special])
    if bos is not None or eos is not None:
        before, after = ([token[0]] if token else [] for token in (bos, eos))
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *before, "$B:1", *after],
            special_tokens=[token for token in (bos, eos) if token],
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    # LlamaTokenizer of transformers 5 ignores the normaliser in tokenizer.json.
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | dict(config)
    (folder / "tokenizer_config.json").write_text(json.dumps(fields, indent=2) + "\n")
