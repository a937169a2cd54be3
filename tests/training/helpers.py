"""A small model and a data iterator whose state is one number."""

import numpy as np

from rope_jax.model.config import LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    attention_chunk=8,
    context=16,
)


class Batches:
    """Packed rows of two documents each, a function of the batch's number only."""

    def __init__(self, rows: int = 8, length: int = 24, vocab: int = 64):
        self.rows, self.length, self.vocab, self.number = rows, length, vocab, 0

    def __next__(self):
        generator = np.random.default_rng(self.number)
        self.number += 1
        tokens = generator.integers(0, self.vocab, (self.rows, self.length), dtype=np.int32)
        cut = generator.integers(1, self.length, (self.rows, 1))
        index = np.arange(self.length)[None]
        segment_ids = np.where(index < cut, 1, 2).astype(np.int32)
        positions = np.where(index < cut, index, index - cut).astype(np.int32)
        return {"tokens": tokens, "segment_ids": segment_ids, "positions": positions}

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]
