"""The shape of a small model. Importing this computes nothing, so that a process may still fork or join others."""

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
