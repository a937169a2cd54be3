"""A tokenizer without files: a token is a byte of UTF-8."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers

_SPECIAL_TOKENS = ("<s>", "</s>")


class ByteTokenizer:
    """Ids 0 to 255 are the bytes, 256 is `<s>`, 257 is `</s>`."""

    vocab_size = 258
    bos_id = 256
    eos_id = 257

    def encode(self, text: str) -> np.ndarray:
        """The bytes of a text's UTF-8, int32 `[bytes]`."""
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Decodes ids without special tokens; invalid UTF-8 becomes U+FFFD."""
        return bytes(int(i) for i in ids if 0 <= i < 256).decode("utf-8", errors="replace")

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, from which `AutoTokenizer` gives the same ids.

        Like LLaMA's tokenizer, it prepends `<s>` unless called with `add_special_tokens=False`.

        Args:
            folder: created if missing.
        """
        # GPT-2's byte-level alphabet, with the printable name of byte b at id b and without merges.
        tokenizer = tokenizers.Tokenizer(
            tokenizers.models.BPE(vocab={name: byte for byte, name in enumerate(_byte_names())}, merges=[])
        )
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        tokenizer.add_special_tokens(
            [tokenizers.AddedToken(token, special=True, normalized=False) for token in _SPECIAL_TOKENS]
        )
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", self.bos_id)]
        )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "clean_up_tokenization_spaces": False,
            # "<s>" within a text is three bytes.
            "split_special_tokens": True,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _byte_names() -> list[str]:
    """GPT-2's names of the 256 bytes: printable ones name themselves, the others are U+0100 and up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    names, others = [], 0
    for byte in range(256):
        names.append(chr(byte if byte in printable else 256 + others))
        others += byte not in printable
    return names
