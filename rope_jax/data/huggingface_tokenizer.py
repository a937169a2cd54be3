"""A tokenizer from a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rope_jax.errors import InputError

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


@dataclasses.dataclass(frozen=True)
class HuggingFaceTokenizer:
    """A tokenizer that transformers loaded.

    Attributes:
        folder: where it was loaded from.
        tokenizer: the transformers tokenizer.
        vocab_size: number of ids, added tokens included.
        bos_id: id that begins a document, or None.
        eos_id: id that ends a document, or None.
    """

    folder: Path
    tokenizer: Any
    vocab_size: int
    bos_id: int | None
    eos_id: int | None

    @classmethod
    def load(cls, folder: str | Path) -> HuggingFaceTokenizer:
        """Loads from a folder, without the network and without running code from it.

        Args:
            folder: holds `tokenizer.json` and `tokenizer_config.json`, or an older layout.

        Raises:
            InputError: if transformers cannot load it.
        """
        # Importing transformers takes seconds, and the other tokenizers do without.
        from transformers import AutoTokenizer

        folder = Path(folder)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # The tokenizers package raises bare Exception.
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"transformers cannot load the tokenizer in {folder} ({reason}); it must be complete and of a class "
                "that transformers itself has (code in the folder is never run)"
            ) from error
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            # A tokenizer.json may ask for truncation and padding, which would change documents silently.
            backend.no_truncation()
            backend.no_padding()
            backend.encode_special_tokens = True
        ids = tokenizer.get_vocab().values()
        return cls(folder, tokenizer, max(ids) + 1, tokenizer.bos_token_id, tokenizer.eos_token_id)

    def encode(self, text: str) -> np.ndarray:
        """Encodes a text of any length without special tokens, as int32 `[tokens]`."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            # transformers would warn about texts longer than its config's maximum.
            ids = backend.encode(text, add_special_tokens=False).ids
        else:
            ids = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return np.asarray(ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Decodes ids without special tokens; invalid UTF-8 becomes U+FFFD."""
        # `clean_up_tokenization_spaces` would drop spaces before full stops.
        return self.tokenizer.decode(
            [int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def save(self, folder: str | Path) -> None:
        """Copies the tokenizer's data files byte for byte into `folder`, which is created if missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            source, target = self.folder / name, folder / name
            if source.exists() and not (target.exists() and source.samefile(target)):
                shutil.copyfile(source, target)
