"""A subword tokenizer trained on given texts: byte-level BPE (Sennrich et al., arXiv 1508.07909)."""

from collections.abc import Iterable
from pathlib import Path

import tokenizers

from rope_jax.data.huggingface_tokenizer import write_tokenizer
from rope_jax.data.recall import Symbols
from rope_jax.errors import InputError


def train_subword(folder: Path, texts: Iterable[str], vocab_size: int, symbols: Symbols) -> int:
    """Trains a tokenizer and writes it as a Hugging Face folder.

    Args:
        texts: training texts.
        vocab_size: ids in all: bytes, merges, `<s>`, `</s>`, and the symbols, which are last.
        symbols: ids that no text is encoded to, numbered from 0.

    Returns:
        The first of the symbols.
    """
    merged = vocab_size - symbols.count - 2
    if merged < 256:
        raise InputError(
            f"`vocab_size` is {vocab_size}: 256 bytes, 2 special tokens and {symbols.count} symbols need more"
        )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=merged, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    # Few texts have few merges.
    first = tokenizer.get_vocab_size()
    special = ("<s>", "</s>", *symbols.names)
    config = {"bos_token": "<s>", "eos_token": "</s>", "split_special_tokens": True}
    write_tokenizer(folder, tokenizer, special=special, bos=("<s>", first), config=config)
    return first + 2
