"""Floating-point operations of a training step.

XLA's cost analysis counts the body of a loop once, and most of a step is in loops. This module counts what the model
needs, by formula, and what a traced program does, recomputation included.
"""

import math

import jax
from jax.extend import core

from rope_jax.model.config import LlamaConfig
from rope_jax.model.flash import block_sizes
from rope_jax.model.llama import abstract_params
from rope_jax.training.config import TrainConfig


def model_flops(config: LlamaConfig, length: int, frozen: bool = False) -> float:
    """FLOPs of one token's forward and backward pass on average, without recomputation.

    6 per weight in a matrix product (arXiv 2001.08361; all but the embedding, which is looked up), or 4 if the weights
    are `frozen` and no gradient of them is formed; and for attention 12 H D per layer and visible key, half of
    `length`, the tokens of a row: documents may be as long.
    """
    params = abstract_params(config)
    weights = sum(leaf.size for leaf in jax.tree.leaves(params["layers"]))
    seen = (length + 1) / 2
    if config.sliding_window:
        window = min(config.sliding_window, length)
        seen = window - window * (window - 1) / (2 * length)
    products = (4.0 if frozen else 6.0) * (weights + config.vocab_size * config.hidden_size)
    return products + 12.0 * config.num_layers * config.num_heads * config.head_dim * seen


def scoring_flops(config: LlamaConfig, length: int, tail: int) -> float:
    """FLOPs of reading a row of `length` tokens and forming the logits of the last `tail` of them.

    The last layer computes the queries and the feed-forward network of these alone; its keys and values are not told
    apart from the rest.
    """
    head = 2.0 * config.vocab_size * config.hidden_size
    layers = model_flops(config, length) / 3 - head
    return length * layers - (length - tail) * layers / config.num_layers + tail * head


def training_flops(config: LlamaConfig, training: TrainConfig) -> float:
    """FLOPs of all steps of a training, with the forward passes that gradient checkpointing repeats."""
    of_token = model_flops(config, training.length, frozen=training.lora is not None)
    repeated = model_flops(config, training.length) / 3 if config.remat in ("full", "offload") else 0.0
    return training.optimizer.steps * training.global_batch * training.length * (of_token + repeated)


def key_blocks(config: LlamaConfig, length: int, devices: int = 1) -> float:
    """Average number of key blocks per query block in the attention of backend `cpu`, for rows of one document.

    Each of the devices that a row is sharded over holds two pieces in ring order.
    """
    size = length // (2 * devices) if devices > 1 else length
    (n, rows), (m, columns) = block_sizes(size, size, config.attention_chunk)
    # Of a piece's own keys, those up to the block's last query.
    own = sum(min(m, (i * rows + rows - 1) // columns + 1) for i in range(n)) / n
    return own if devices == 1 else (2 * own + (2 * devices - 1) * m) / (2 * devices + 1)


def product_flops(jaxpr, trips: float = 1.0) -> float:
    """FLOPs of all matrix products of a program, with the body of each scan times its length.

    A multiply-add counts 2. Of the branches of a condition, the largest counts.

    Args:
        jaxpr: `jax.core.Jaxpr` or `ClosedJaxpr`, such as `jax.jit(f).trace(...).jaxpr`.
        trips: trip count of the body of a `while`, which a jaxpr lacks; `key_blocks` for a training step.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            shared = math.prod(eqn.invars[0].aval.shape[axis] for axis in contract)
            total += 2.0 * math.prod(eqn.outvars[0].aval.shape) * shared
            continue
        inner = [product_flops(inner, trips) for inner in _inner(eqn)]
        if eqn.primitive.name == "cond":
            total += max(inner)
        elif eqn.primitive.name == "scan":
            total += sum(inner) * eqn.params["length"]
        elif eqn.primitive.name == "while":
            total += sum(inner) * trips
        elif eqn.primitive.name == "shard_map":
            # Shapes inside are those of one device. The parameter's name depends on the release of JAX.
            manual = eqn.params.get("newly_manual_axes") or eqn.params["manual_axes"]
            total += sum(inner) * math.prod(eqn.params["mesh"].shape[axis] for axis in manual)
        else:
            total += sum(inner)
    return total


def _inner(eqn) -> list:
    """Jaxprs that an equation runs; rules of differentiation are not jaxprs yet."""
    values = (value if isinstance(value, (tuple, list)) else (value,) for value in eqn.params.values())
    return [item for items in values for item in items if isinstance(item, (core.Jaxpr, core.ClosedJaxpr))]
