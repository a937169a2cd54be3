"""A real model: stories260K must tell the story that its author's code tells."""

import jax
import numpy as np
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.interop.huggingface import read_model
from rope_jax.model.llama import Llama
from tests.interop.references import reference_logits
from tests.interop.stories import read_pieces, write_stories260k

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she "
    "saw a big, red ball. She wanted to play with it, but it was too high."
)
FIRST = [1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315]


@pytest.fixture(scope="module")
def folder(shared, tmp_path_factory):
    return write_stories260k(shared / "data", tmp_path_factory.mktemp("stories260k"))


def test_greedy_text_is_the_documented_one(folder):
    model = read_model(folder)
    predict = jax.jit(lambda tokens: Llama(model.config).apply({"params": model.params}, tokens, model.rope))
    tokens = np.zeros((1, 80), np.int32)
    tokens[0, 0] = 1
    for i in range(79):
        tokens[0, i + 1] = np.asarray(predict(tokens))[0, i].argmax()
    assert tokens[0, : len(FIRST)].tolist() == FIRST
    assert load_tokenizer(folder).decode(tokens[0]).startswith(STORY)


def test_logits_equal_transformers(folder):
    model = read_model(folder)
    tokens = np.concatenate([[1], load_tokenizer(folder).encode(STORY)])[None]
    ours = jax.jit(Llama(model.config).apply)({"params": model.params}, tokens, model.rope)
    # Logits reach 20; two float32 implementations that sum in different orders.
    np.testing.assert_allclose(ours, reference_logits(folder, tokens), rtol=1e-4, atol=1e-4)


def test_tokenizer_encodes_as_sentencepiece_does(folder, shared):
    pieces = read_pieces(shared / "data" / "stories260k" / "tok512.bin")
    proto = sentencepiece_model_pb2.ModelProto()
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    for i, (piece, score) in enumerate(pieces):
        kind = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL][i] if i < 3 else kinds.NORMAL
        kind = kinds.BYTE if 3 <= i < 259 else kind
        proto.pieces.add(piece=piece, score=score, type=kind)
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.vocab_size = len(pieces)
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    reference = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())

    tokenizer = load_tokenizer(folder)
    for text in (STORY, "Tim's caf\u00e9 \u2014 \u732b!\n\n  12 cats", "a", "zzzqqq the thethe"):
        assert tokenizer.encode(text).tolist() == reference.encode(text)
        assert tokenizer.decode(reference.encode(text)) == text
