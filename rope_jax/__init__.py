"""Context-window extension of RoPE language models from a distributional perspective, in JAX."""
