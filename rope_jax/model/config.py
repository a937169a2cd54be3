"""The shape of a decoder of the LLaMA family and how it is computed, as one frozen dataclass."""

from __future__ import annotations

import dataclasses

from rope_jax.errors import InputError
from rope_jax.model.remat import POLICIES

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
ATTENTION = ("cpu", "cudnn", "splash")


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """A decoder of the LLaMA family (arXiv 2302.13971; grouped-query attention from 2305.13245).

    Attributes:
        vocab_size: V.
        hidden_size: E.
        intermediate_size: F, width of the SwiGLU.
        num_layers: number of blocks.
        num_heads: H query heads.
        num_kv_heads: K key and value heads; divides H.
        head_dim: D, even; H * D need not equal E.
        rms_norm_eps: epsilon inside the root of RMSNorm.
        rope_base: base of the rotary frequencies.
        tie_embeddings: whether the head is the embedding transposed.
        architecture: 'llama', 'mistral' (arXiv 2310.06825), 'qwen2' (2407.10671) or 'qwen3' (2505.09388); the last
            normalises queries and keys.
        attention_bias: whether the projections of attention have biases; always those of 'qwen2', where the
            output has none, never those of 'mistral'.
        sliding_window: tokens that a query sees, itself included, of 'mistral'; None is all before it.
        context: tokens that the model was pre-trained on (`max_position_embeddings`).
        initializer_range: standard deviation of freshly initialised weights.
        dtype: computation dtype of matmuls; norms, rotary phases, softmax and loss are always float32.
        param_dtype: dtype the weights are kept in.
        rotary: arithmetic of rotary angles: "float32", which serves the same bits as transformers and is off by
            1e-3 rad at 16k and 6e-2 rad at 1M tokens, or "exact", off by less than 1e-6 rad at any position.
        remat: what a block keeps for the backward pass, see `rope_jax.model.remat`.
        scan_unroll: blocks per iteration of the scan over layers. 1 compiles fastest; `num_layers` unrolls
            fully, which is a little faster on a CPU, but keeps as much there as if `remat` were 'none'.
        attention: how attention over whole sequences is computed: 'cpu', plain JAX that runs anywhere, 'cudnn' or
            'splash' (see `rope_jax.model.backends`).
        attention_chunk: queries and keys handled at a time by 'cpu'; bounds its memory.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-5
    rope_base: float = 10000.0
    tie_embeddings: bool = False
    architecture: str = "llama"
    attention_bias: bool = False
    sliding_window: int | None = None
    context: int = 4096
    initializer_range: float = 0.02
    dtype: str = "float32"
    param_dtype: str = "float32"
    rotary: str = "float32"
    remat: str = "none"
    scan_unroll: int = 1
    attention: str = "cpu"
    attention_chunk: int = 512

    def __post_init__(self):
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "context")
        for field in (*sizes, "scan_unroll", "attention_chunk"):
            if getattr(self, field) < 1:
                raise InputError(f"model.{field} is {getattr(self, field)}: it must be at least 1")
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise InputError(
                f"model.num_heads is {self.num_heads} and model.num_kv_heads {self.num_kv_heads}: "
                "the first must be a multiple of the second"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise InputError(f"model.head_dim is {self.head_dim}: rotary embedding turns pairs, so it must be even")
        if self.architecture not in ARCHITECTURES:
            raise InputError(f"model.architecture is {self.architecture!r}: use one of {', '.join(ARCHITECTURES)}")
        required = {"mistral": False, "qwen2": True}.get(self.architecture)
        if required is not None and self.attention_bias != required:
            raise InputError(
                f"model.attention_bias is {self.attention_bias}: '{self.architecture}' asks for {required}"
            )
        if self.sliding_window is not None and (self.architecture != "mistral" or self.sliding_window < 1):
            raise InputError(
                f"model.sliding_window is {self.sliding_window}: it is a number of tokens for 'mistral', and None for "
                "the others"
            )
        if self.rotary not in ("float32", "exact"):
            raise InputError(f"model.rotary is {self.rotary!r}: use 'float32' or 'exact'")
        if self.attention not in ATTENTION:
            raise InputError(f"model.attention is {self.attention!r}: use one of {', '.join(ATTENTION)}")
        if self.remat not in POLICIES:
            raise InputError(f"model.remat is {self.remat!r}: use one of {', '.join(POLICIES)}")
        for field in ("dtype", "param_dtype"):
            if getattr(self, field) not in ("float32", "bfloat16", "float16"):
                raise InputError(f"model.{field} is {getattr(self, field)!r}: use 'float32', 'bfloat16' or 'float16'")

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised before they are turned."""
        return self.architecture == "qwen3"

    @property
    def output_bias(self) -> bool:
        """Whether the output projection of attention has a bias too."""
        return self.attention_bias and self.architecture != "qwen2"
