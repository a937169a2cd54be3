"""The shape of a decoder of the LLaMA family and how it is computed, as one frozen dataclass."""

import dataclasses
from functools import partial

from rope_jax.errors import require
from rope_jax.model.remat import POLICIES

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
ATTENTION = ("cpu", "cudnn", "pallas", "splash")
ROTARY = ("float32", "exact")
DTYPES = ("float32", "bfloat16", "float16")


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
        attention_bias: whether the projections of attention have biases. 'qwen2' always has them, except on the
            output; 'mistral' never has.
        sliding_window: tokens that a query sees, itself included, of 'mistral'; None is all before it.
        context: tokens that the model was pre-trained on (`max_position_embeddings`).
        initializer_range: standard deviation of freshly initialised weights.
        dtype: computation dtype of matrix products; norms, rotary angles, softmax and loss are always float32.
        param_dtype: dtype of the weights.
        rotary: arithmetic of rotary angles. "float32" computes the same bits as transformers and is off by 1e-3 rad
            at 16k and 6e-2 rad at 1M tokens; "exact" is off by less than 1e-6 rad at any position.
        remat: gradient checkpointing: what a block keeps for the backward pass, one of `rope_jax.model.remat.POLICIES`.
        scan_unroll: blocks per iteration of the scan over layers. 1 compiles fastest; `num_layers` unrolls
            fully, which is a little faster on a CPU, but keeps as much there as if `remat` were 'none'.
        attention: backend of attention over whole sequences, of `rope_jax.model.backends`: 'cpu', plain JAX that runs
            anywhere, 'cudnn', 'pallas' or 'splash'.
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
        check = partial(require, self)
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
        for field in (*sizes, "context", "scan_unroll", "attention_chunk"):
            check(field, getattr(self, field) >= 1, "it must be at least 1")
        grouped = self.num_heads % self.num_kv_heads == 0
        check("num_kv_heads", grouped, f"it must divide `num_heads`, which is {self.num_heads}")
        pairs = self.head_dim >= 2 and self.head_dim % 2 == 0
        check("head_dim", pairs, "rotary dimensions come in pairs; it must be even")
        choices = {"architecture": ARCHITECTURES, "rotary": ROTARY, "attention": ATTENTION, "remat": POLICIES}
        for field, names in (choices | {"dtype": DTYPES, "param_dtype": DTYPES}).items():
            check(field, getattr(self, field) in names, f"use one of {', '.join(names)}")
        bias = {"mistral": False, "qwen2": True}.get(self.architecture, self.attention_bias)
        check("attention_bias", self.attention_bias == bias, f"'{self.architecture}' requires {bias}")
        window = self.sliding_window
        fits = window is None or (self.architecture == "mistral" and window >= 1)
        check("sliding_window", fits, "it is a number of tokens for 'mistral', and None for the others")
        windowed = self.attention == "pallas" and window is not None
        check("attention", not windowed, f"it has no sliding window, and the model's is {window}: use 'cudnn' or 'cpu'")

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised before they are rotated."""
        return self.architecture == "qwen3"

    @property
    def output_bias(self) -> bool:
        """Whether the output projection of attention has a bias too."""
        return self.attention_bias and self.architecture != "qwen2"
