"""A tokenizer without files: a token is a byte of UTF-8."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers

from rope_jax.data.huggingface_tokenizer import write_tokenizer
from rope_jax.data.recall import Symbols


class ByteTokenizer:
    """Ids 0 to 255 are the bytes, 256 is `<s>`, 257 is `</s>`; with `recall`, symbols follow."""

    bos_id: int | None = 256
    eos_id: int | None = 257

    def __init__(self, recall: bool = False):
        self.symbols: Symbols | None = Symbols(258) if recall else None
        self.vocab_size: int = 258 + (self.symbols.count if self.symbols else 0)

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return bytes(int(i) for i in ids if 0 <= i < 256).decode("utf-8", errors="replace")

    def save(self, folder: str | Path) -> None:
        """Writes a `tokenizer.json` of GPT-2's byte-level alphabet, with byte b at id b and without merges."""
        alphabet = {name: byte for byte, name in enumerate(_byte_names())}
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=alphabet, merges=[]))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        # "<s>" within a text is three bytes.
        config = {"bos_token": "<s>", "eos_token": "</s>", "split_special_tokens": True}
        special = ("<s>", "</s>", *(self.symbols.names if self.symbols else ()))
        write_tokenizer(Path(folder), tokenizer, special=special, bos=("<s>", 256), config=config)


def _byte_names() -> list[str]:
    """GPT-2's names of the 256 bytes: printable ones name themselves, the others are U+0100 and up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    names, others = [], 0
    for byte in range(256):
        names.append(chr(byte if byte in printable else 256 + others))
        others += byte not in printable
    return names
