"""The interface of tokenizers, and loading one by its path."""

import contextlib
import os
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from rope_jax.data.byte_tokenizer import ByteTokenizer
from rope_jax.data.gguf_tokenizer import write_gguf_tokenizer
from rope_jax.data.huggingface_tokenizer import HuggingFaceTokenizer
from rope_jax.data.recall import Symbols
from rope_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rope_jax.errors import InputError
from rope_jax.gguf_reader import is_gguf


class Tokenizer(Protocol):
    """Text to token ids and back.

    Text is data: the characters `</s>` in a document are never encoded as a special token.

    Attributes:
        vocab_size: number of ids, special ones included; every id is below it.
        bos_id: id that begins a document, or None.
        eos_id: id that ends a document, or None.
        symbols: ids of synthetic recall, or None.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    symbols: Symbols | None

    def encode(self, text: str) -> np.ndarray:
        """Encodes a text of any length without special tokens, as int32 `[tokens]`."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Decodes ids without special tokens; invalid UTF-8 becomes U+FFFD."""
        ...

    def save(self, folder: str | Path) -> None:
        """Writes into `folder`, created if missing, the files from which `AutoTokenizer` loads this tokenizer."""
        ...


def load_tokenizer(path: str | Path, recall: bool = False) -> Tokenizer:
    """Loads a tokenizer from local files.

    Args:
        path: `bytes` for the byte tokenizer; a sentencepiece model (`*.model`) or a folder whose only tokenizer
            file is `tokenizer.model`; a GGUF file; or a Hugging Face folder.
        recall: gives the byte tokenizer symbols of synthetic recall.

    Raises:
        InputError: if there is no tokenizer at `path`, or it cannot be loaded without running foreign code.
    """
    if str(path) == "bytes":
        return ByteTokenizer(recall)
    path = Path(path)
    if os.path.isfile(path) and path.suffix == ".model":
        return SentencePieceTokenizer(path)
    if is_gguf(path):
        return _load_gguf(path)
    if not os.path.isdir(path):
        raise InputError(
            f"`path` is {path}, neither 'bytes', nor a folder, nor a sentencepiece .model file; download the tokenizer "
            "of a hub first (hf download NAME --include 'token*' --local-dir FOLDER)"
        )
    if any((path / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        return HuggingFaceTokenizer(path)
    if (path / "tokenizer.model").exists():
        return SentencePieceTokenizer(path / "tokenizer.model")
    raise InputError(
        f"`path`: {path} has no tokenizer.json, tokenizer_config.json or tokenizer.model; "
        "name the folder that has one of them, or 'bytes'"
    )


def _load_gguf(file: Path) -> Tokenizer:
    with contextlib.ExitStack() as undo:
        folder = tempfile.TemporaryDirectory(prefix="rope-jax-tokenizer-")
        undo.callback(folder.cleanup)
        write_gguf_tokenizer(file, Path(folder.name))
        if not any(Path(folder.name).iterdir()):
            raise InputError(f"`path` is {file}, which holds no tokenizer: name one, or 'bytes'")
        tokenizer = load_tokenizer(folder.name)
        undo.pop_all()
    # A tokenizer is saved as a copy of its files.
    weakref.finalize(tokenizer, folder.cleanup)
    return tokenizer
