"""A tokenizer from a bare sentencepiece model, such as LLaMA2's `tokenizer.model`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from rope_jax.errors import InputError

_proto: Any = sentencepiece_model_pb2  # generated, without types
_Piece = _proto.ModelProto.SentencePiece
_SPACE = "\u2581"  # a space within a piece


@dataclasses.dataclass(frozen=True)
class SentencePieceTokenizer:
    """A sentencepiece model, applied by the sentencepiece package.

    transformers 5 treats leading spaces in another way than sentencepiece, with which the model was trained.

    Attributes:
        path: the model file.
        processor: the loaded model.
        vocab_size: number of pieces.
        bos_id: id that begins a document, or None.
        eos_id: id that ends a document, or None.
    """

    path: Path
    processor: sentencepiece.SentencePieceProcessor
    vocab_size: int
    bos_id: int | None
    eos_id: int | None

    @classmethod
    def load(cls, path: str | Path) -> SentencePieceTokenizer:
        """Loads a model file; an InputError names a file that is not a sentencepiece model."""
        path = Path(path)
        try:
            processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{path} is not a sentencepiece model; LLaMA3's tokenizer.model is not one either: use the folder with "
                "its tokenizer.json"
            ) from error
        bos, eos = processor.bos_id(), processor.eos_id()
        return cls(path, processor, processor.vocab_size(), bos if bos >= 0 else None, eos if eos >= 0 else None)

    def encode(self, text: str) -> np.ndarray:
        """Encodes a text of any length without special tokens, as int32 `[tokens]`."""
        return np.asarray(self.processor.encode(text), np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Decodes ids without special tokens and ids outside the vocabulary; invalid UTF-8 becomes U+FFFD."""
        return self.processor.decode([int(i) for i in ids if 0 <= i < self.vocab_size])

    def save(self, folder: str | Path) -> None:
        """Writes the model file, and its equivalent as `tokenizer.json` with `tokenizer_config.json`.

        Like LLaMA's tokenizer, it prepends BOS unless called with `add_special_tokens=False`, and reads the text of a
        special token as that token.

        Args:
            folder: created if missing.

        Raises:
            InputError: if the model is of a kind (unigram, or with a normaliser or symbols of its own) for which
                `tokenizer.json` has no exact equivalent here.
        """
        model = _proto.ModelProto.FromString(self.path.read_bytes())
        equivalent = _huggingface_equivalent(model, self.path)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        equivalent.save(str(folder / "tokenizer.json"))
        target = folder / "tokenizer.model"
        if not (target.exists() and self.path.samefile(target)):
            shutil.copyfile(self.path, target)
        config = {
            # LlamaTokenizer of transformers 5 ignores the normaliser in tokenizer.json.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None if self.bos_id is None else model.pieces[self.bos_id].piece,
            "eos_token": None if self.eos_id is None else model.pieces[self.eos_id].piece,
            "unk_token": model.pieces[self.processor.unk_id()].piece,
            "clean_up_tokenization_spaces": False,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _huggingface_equivalent(model, path: Path) -> tokenizers.Tokenizer:
    """The same byte-pair encoding as a `tokenizers` pipeline; an InputError if there is none."""
    spec = model.normalizer_spec
    exact = (
        model.trainer_spec.model_type == _proto.TrainerSpec.BPE
        and spec.escape_whitespaces
        and not (spec.precompiled_charsmap or spec.remove_extra_whitespaces)
        and not model.trainer_spec.treat_whitespace_as_suffix
        and all(piece.type != _Piece.USER_DEFINED for piece in model.pieces)
    )
    if not exact:
        raise InputError(
            f"{path} is a sentencepiece model without an exact tokenizer.json (only byte-pair models without "
            "normalisation have one); use the model's Hugging Face folder instead"
        )
    unk = next((piece.piece for piece in model.pieces if piece.type == _Piece.UNKNOWN), None)
    result = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={piece.piece: i for i, piece in enumerate(model.pieces)},
            merges=_merges(model.pieces),
            unk_token=unk,
            fuse_unk=True,
            byte_fallback=model.trainer_spec.byte_fallback,
        )
    )
    escape = tokenizers.normalizers.Replace(" ", _SPACE)
    prefix = [tokenizers.normalizers.Prepend(_SPACE)] if spec.add_dummy_prefix else []
    result.normalizer = tokenizers.normalizers.Sequence([*prefix, escape])
    decoders = tokenizers.decoders
    strip = [decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else []
    result.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    special = [piece.piece for piece in model.pieces if piece.type in (_Piece.CONTROL, _Piece.UNKNOWN)]
    result.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in special])
    bos = model.trainer_spec.bos_id
    if bos >= 0:
        token = model.pieces[bos].piece
        result.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{token} $A", pair=f"{token} $A {token} $B:1", special_tokens=[(token, bos)]
        )
    return result


def _merges(pieces) -> list[tuple[str, str]]:
    """All pairs of pieces that form a piece, best score first: the order in which sentencepiece merges."""
    scores = {piece.piece: piece.score for piece in pieces if piece.type == _Piece.NORMAL}
    pairs = [
        (piece[:cut], piece[cut:])
        for piece in scores
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return sorted(pairs, key=lambda pair: -scores[pair[0] + pair[1]])
