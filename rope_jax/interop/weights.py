"""One table between Hugging Face's tensors and our parameters: names, shapes and axes, both ways."""

import dataclasses
import math
import re

import numpy as np

from rope_jax.model.config import LlamaConfig

# Axis of a tensor -> its size, a field of `LlamaConfig`.
AXES = {
    "vocab": "vocab_size",
    "embed": "hidden_size",
    "heads": "num_heads",
    "kv_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "mlp": "intermediate_size",
}


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter, and the tensor (or one tensor per layer) that stores it.

    Attributes:
        name: Hugging Face's tensor name; `{}` stands for the layer of a stacked parameter.
        path: keys into the parameter tree.
        stored: axes of the tensor; a group of several is flattened into one dimension, first name slowest.
        kept: the same axes in the parameter's order, the leading `layers` of a stacked one left out.
    """

    name: str
    path: tuple[str, ...]
    stored: tuple[tuple[str, ...], ...]
    kept: tuple[str, ...]

    @property
    def stacked(self) -> bool:
        """Whether the parameter stacks one tensor per layer on its leading axis."""
        return "{}" in self.name

    def names(self, config: LlamaConfig) -> list[str]:
        """Tensor names, in layer order."""
        return [self.name.format(i) for i in range(config.num_layers)] if self.stacked else [self.name]

    def stored_shape(self, config: LlamaConfig) -> tuple[int, ...]:
        """Shape of each tensor."""
        return tuple(math.prod(getattr(config, AXES[axis]) for axis in group) for group in self.stored)

    def kept_shape(self, config: LlamaConfig) -> tuple[int, ...]:
        """Shape of the parameter, `layers` included."""
        leading = (config.num_layers,) if self.stacked else ()
        return leading + tuple(getattr(config, AXES[axis]) for axis in self.kept)

    def axes(self) -> list[int]:
        """Axes of (one layer of) the parameter, in the order in which the tensor has them."""
        return [self.kept.index(axis) for group in self.stored for axis in group]

    def to_stored(self, parameter: np.ndarray, config: LlamaConfig) -> np.ndarray:
        """(One layer of) the parameter as the tensor; a view, unless heads lie apart in memory."""
        return parameter.transpose(self.axes()).reshape(self.stored_shape(config))


def _linear(module, path, outputs, inputs):
    # torch.nn.Linear stores [out, in]; our kernels are [in, out].
    name = f"model.layers.{{}}.{module}.weight"
    return Weight(name, ("layers", *path, "kernel"), (outputs, inputs), inputs + outputs)


def _bias(module, path, outputs):
    return Weight(f"model.layers.{{}}.{module}.bias", ("layers", *path, "bias"), (outputs,), outputs)


def _norm(module, path, axis="embed"):
    return Weight(f"model.layers.{{}}.{module}.weight", ("layers", *path, "weight"), ((axis,),), (axis,))


EMBEDDING = Weight("model.embed_tokens.weight", ("embedding",), (("vocab",), ("embed",)), ("vocab", "embed"))
HEAD = Weight("lm_head.weight", ("head",), (("vocab",), ("embed",)), ("embed", "vocab"))

QUERY = _linear("self_attn.q_proj", ("attention", "q"), ("heads", "head_dim"), ("embed",))
KEY = _linear("self_attn.k_proj", ("attention", "k"), ("kv_heads", "head_dim"), ("embed",))
QUERY_BIAS = _bias("self_attn.q_proj", ("attention", "q"), ("heads", "head_dim"))
KEY_BIAS = _bias("self_attn.k_proj", ("attention", "k"), ("kv_heads", "head_dim"))
VALUE_BIAS = _bias("self_attn.v_proj", ("attention", "v"), ("kv_heads", "head_dim"))
OUTPUT_BIAS = _bias("self_attn.o_proj", ("attention", "o"), ("embed",))
QUERY_NORM = _norm("self_attn.q_norm", ("attention", "q_norm"), "head_dim")
KEY_NORM = _norm("self_attn.k_norm", ("attention", "k_norm"), "head_dim")

# What all have in common, which is the whole of Mistral.
MISTRAL = (
    EMBEDDING,
    _norm("input_layernorm", ("attention_norm",)),
    QUERY,
    KEY,
    _linear("self_attn.v_proj", ("attention", "v"), ("kv_heads", "head_dim"), ("embed",)),
    _linear("self_attn.o_proj", ("attention", "o"), ("embed",), ("heads", "head_dim")),
    _norm("post_attention_layernorm", ("feed_forward_norm",)),
    _linear("mlp.gate_proj", ("feed_forward", "gate"), ("mlp",), ("embed",)),
    _linear("mlp.up_proj", ("feed_forward", "up"), ("mlp",), ("embed",)),
    _linear("mlp.down_proj", ("feed_forward", "down"), ("embed",), ("mlp",)),
    Weight("model.norm.weight", ("norm", "weight"), (("embed",),), ("embed",)),
    HEAD,
)
QWEN2 = (*MISTRAL, QUERY_BIAS, KEY_BIAS, VALUE_BIAS)
LLAMA = (*QWEN2, OUTPUT_BIAS)
QWEN3 = (*LLAMA, QUERY_NORM, KEY_NORM)

# By `LlamaConfig.architecture`; a model has the rows that `table` selects by its config.
TABLES = {"llama": LLAMA, "mistral": MISTRAL, "qwen2": QWEN2, "qwen3": QWEN3}

# Old checkpoints store the rotary frequencies; they follow from the config.
FREQUENCY_BUFFER = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def table(config: LlamaConfig) -> tuple[Weight, ...]:
    """The rows of a model of this config: a tied one has no head, and not every one has biases."""
    absent: tuple[Weight, ...] = (HEAD,) if config.tie_embeddings else ()
    if not config.attention_bias:
        absent += (QUERY_BIAS, KEY_BIAS, VALUE_BIAS, OUTPUT_BIAS)
    return tuple(weight for weight in TABLES[config.architecture] if weight not in absent)
