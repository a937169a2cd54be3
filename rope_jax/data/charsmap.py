"""The character map of a `Precompiled` normalizer, checked: the tokenizers package ends the process at a broken one.

It is sentencepiece's: the bytes of a double-array trie, the trie (darts-clone), and replacements that end in NUL.
"""

import base64

import numpy as np

from rope_jax.errors import InputError

# Bits of a unit of the trie: it has a value; its label, or that it is a value.
_HAS_LEAF, _LABEL, _VALUE = 1 << 8, 0x800000FF, 0x7FFFFFFF


def check_charsmap(place: str, encoded: object) -> None:
    """Checks that every lookup in a base64-encoded map stays within it; `InputError`, naming `place`, if not."""
    error = InputError(f"{place} has a precompiled_charsmap that is damaged: download it again")
    if not isinstance(encoded, str):
        raise error
    try:
        content = base64.b64decode(encoded, validate=True)
    except ValueError:
        raise error from None
    size = int.from_bytes(content[:4], "little")
    replacements = content[4 + size :]
    if len(content) <= 4 or not 0 < size <= len(content) - 4 or size % 4 or not replacements.endswith(b"\0"):
        raise error
    try:
        replacements.decode("utf-8")
    except UnicodeDecodeError:
        raise error from None
    starts = np.frombuffer(replacements, np.uint8)
    units = np.frombuffer(content, "<u4", size // 4, 4).astype(np.int64)
    seen, reached = np.zeros(len(units), bool), np.zeros(1, np.int64)
    while reached.size:
        seen[reached] = True
        found = units[reached]
        # The places of what follows a unit: one for its value, at 0, and one for each byte.
        begin = reached ^ ((found >> 10) << ((found & (1 << 9)) >> 6))
        if (begin | 0xFF).max() >= len(units):
            raise error
        values = units[begin[(found & _HAS_LEAF) != 0]] & _VALUE
        # A replacement begins within the bytes, and not within a character.
        if values.size and (values.max() >= len(replacements) or ((starts[values] & 0xC0) == 0x80).any()):
            raise error
        labels = np.arange(1, 256)
        following = begin[:, None] ^ labels
        following = np.unique(following[(units[following] & _LABEL) == labels])
        reached = following[~seen[following]]
