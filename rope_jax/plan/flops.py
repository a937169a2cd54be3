"""Floating-point operations of a training step.

XLA's own count takes the body of a loop once, and most of a step lies in loops. Two counts stand in for it: what the
model needs, by formula, and what a traced program does, recomputation included.
"""

from __future__ import annotations

import math

import jax
from jax.extend import core

from rope_jax.model.config import LlamaConfig
from rope_jax.model.flash import block_sizes
from rope_jax.model.llama import abstract_params


def model_flops(config: LlamaConfig, length: int) -> float:
    """What one token's forward and backward pass needs on average, whatever the program does on top.

    6 per weight that it is multiplied with (arXiv 2001.08361; all but the embedding, which is looked up), and for
    attention 12 H D per layer and key that it sees, half of `length` on average: documents may be as long as rows.

    Args:
        config: model config.
        length: tokens of a row.

    Returns:
        FLOPs per token.
    """
    params = abstract_params(config)
    weights = sum(leaf.size for leaf in jax.tree.leaves(params["layers"]))
    seen = (length + 1) / 2
    if config.sliding_window:
        window = min(config.sliding_window, length)
        seen = window - window * (window - 1) / (2 * length)
    head = config.vocab_size * config.hidden_size
    return 6.0 * (weights + head) + 12.0 * config.num_layers * config.num_heads * config.head_dim * seen


def key_blocks(config: LlamaConfig, length: int, devices: int = 1) -> float:
    """Blocks of keys that a block of queries meets on average in the attention of backend `cpu`.

    Args:
        config: model config.
        length: tokens of a row, of one document.
        devices: that a row is cut over, each of which holds two pieces (see `rope_jax.model.ring`).

    Returns:
        The mean over all products of pieces; of the whole row if it is not cut.
    """
    size = length // (2 * devices) if devices > 1 else length
    n, rows, m, columns = block_sizes(size, size, config.attention_chunk)
    # Of a piece's own keys, those up to the block's last query.
    own = sum(min(m, (i * rows + rows - 1) // columns + 1) for i in range(n)) / n
    return own if devices == 1 else (2 * own + (2 * devices - 1) * m) / (2 * devices + 1)


def product_flops(jaxpr, trips: float = 1.0) -> float:
    """FLOPs of all matrix products of a program, with the body of each scan as often as it runs.

    Args:
        jaxpr: `jax.core.Jaxpr` or `ClosedJaxpr`, such as of `jax.jit(f).trace(...)`.
        trips: how often the body of a `while` runs, which a program does not say; `key_blocks` of a training step.

    Returns:
        2 per multiplication and addition. Where the branches of a condition differ, the larger counts.
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
            # Shapes inside are those of one device.
            # Its axes have one name in some releases of JAX, and another in others.
            manual = eqn.params.get("newly_manual_axes") or eqn.params["manual_axes"]
            total += sum(inner) * math.prod(eqn.params["mesh"].shape[axis] for axis in manual)
        else:
            total += sum(inner)
    return total


def _inner(eqn) -> list:
    """The programs that an operation runs; what would differentiate it is no program yet."""
    values = (value if isinstance(value, (tuple, list)) else (value,) for value in eqn.params.values())
    return [item for items in values for item in items if isinstance(item, (core.Jaxpr, core.ClosedJaxpr))]
