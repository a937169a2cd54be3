"""A tokenizer from a bare sentencepiece model, such as LLaMA2's `tokenizer.model`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from rope_jax.data.huggingface_tokenizer import copy_file, write_tokenizer
from rope_jax.data.recall import Symbols
from rope_jax.errors import InputError
from rope_jax.files import read_bytes

_proto: Any = sentencepiece_model_pb2  # generated, without types
_Piece = _proto.ModelProto.SentencePiece
_SPACE = "\u2581"  # a space within a piece
_NEVER = -1e5  # a score: below that of any text of a few characters


class SentencePieceTokenizer:
    """A sentencepiece model file, applied by the sentencepiece package.

    transformers 5 treats leading spaces in another way than sentencepiece, with which the model was trained.
    """

    def __init__(self, path: Path):
        content = read_bytes(path)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(content)
            self._processor.id_to_piece(list(range(self._processor.vocab_size())))  # all are UTF-8
        except (OSError, RuntimeError, UnicodeDecodeError) as error:
            raise InputError(
                f"{path} is not a sentencepiece model; LLaMA3's tokenizer.model is not one either: use the folder with "
                "its tokenizer.json"
            ) from error
        self.path = path
        self.vocab_size: int = self._processor.vocab_size()
        bos, eos = self._processor.bos_id(), self._processor.eos_id()
        self.bos_id: int | None = bos if bos >= 0 else None
        self.eos_id: int | None = eos if eos >= 0 else None
        self.symbols: Symbols | None = None

    def encode(self, text: str) -> np.ndarray:
        return np.asarray(self._processor.encode(text), np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._processor.decode([int(i) for i in ids if 0 <= i < self.vocab_size])

    def save(self, folder: str | Path) -> None:
        """Writes the model file, and its equivalent as `tokenizer.json` with `tokenizer_config.json`.

        Unlike this tokenizer, the equivalent reads the text of a special token as that token. An InputError tells of a
        model (with a normaliser or symbols of its own) that has no exact equivalent here.
        """
        model = _proto.ModelProto.FromString(self.path.read_bytes())
        # After a symbol of its own, sentencepiece adds no space where the equivalent does.
        if any(piece.type == _Piece.USER_DEFINED for piece in model.pieces):
            raise _no_equivalent(self.path)
        equivalent = huggingface_equivalent(model, self.path)
        names = [piece.piece for piece in model.pieces]
        bos = None if self.bos_id is None else (names[self.bos_id], self.bos_id)
        config = {
            "bos_token": bos and bos[0],
            "eos_token": None if self.eos_id is None else names[self.eos_id],
            "unk_token": names[self._processor.unk_id()],
        }
        special = [piece.piece for piece in model.pieces if piece.type in (_Piece.CONTROL, _Piece.UNKNOWN)]
        write_tokenizer(Path(folder), equivalent, special=special, bos=bos, config=config)
        copy_file(self.path, Path(folder) / "tokenizer.model")


def huggingface_equivalent(model, path: Path) -> tokenizers.Tokenizer:
    """A sentencepiece `ModelProto`, read from `path`, as a `tokenizers` pipeline; an InputError if there is none."""
    spec, kind = model.normalizer_spec, model.trainer_spec.model_type
    exact = (
        kind in (_proto.TrainerSpec.BPE, _proto.TrainerSpec.UNIGRAM)
        and spec.escape_whitespaces
        and not (spec.precompiled_charsmap or spec.remove_extra_whitespaces)
        and not model.trainer_spec.treat_whitespace_as_suffix
    )
    if not exact:
        raise _no_equivalent(path)
    fallback = model.trainer_spec.byte_fallback
    unknown = next((i for i, piece in enumerate(model.pieces) if piece.type == _Piece.UNKNOWN), None)
    if kind == _proto.TrainerSpec.BPE:
        algorithm = tokenizers.models.BPE(
            vocab={piece.piece: i for i, piece in enumerate(model.pieces)},
            merges=_merges(model.pieces),
            unk_token=None if unknown is None else model.pieces[unknown].piece,
            fuse_unk=True,
            byte_fallback=fallback,
        )
    else:
        algorithm = tokenizers.models.Unigram(_scored(model.pieces, path), unknown, fallback)
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    normalising: list = [normalizers.Replace(" ", _SPACE)]
    decoding: list = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if spec.add_dummy_prefix:
        normalising.insert(0, normalizers.Prepend(_SPACE))
        decoding.append(decoders.Strip(" ", 1, 0))
    result = tokenizers.Tokenizer(algorithm)
    result.normalizer, result.decoder = normalizers.Sequence(normalising), decoders.Sequence(decoding)
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


def _scored(pieces, path: Path) -> list[tuple[str, float]]:
    """Pieces with the scores of a unigram model; the text of a piece that is not of the text, `</s>`, is no such piece.

    The library would take it for one. With a score that other pieces always beat it does not, if they cover its text.
    """
    normal = {piece.piece for piece in pieces if piece.type == _Piece.NORMAL}
    if not all(set(piece.piece) <= normal for piece in pieces if piece.type != _Piece.NORMAL):
        raise _no_equivalent(path)
    return [(piece.piece, piece.score if piece.type == _Piece.NORMAL else _NEVER) for piece in pieces]


def _no_equivalent(path: Path) -> InputError:
    return InputError(
        f"{path} is a sentencepiece model without an exact tokenizer.json (only models without normalisation and "
        "symbols of their own have one); use the model's Hugging Face folder instead"
    )
