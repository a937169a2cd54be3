"""Memory of a training step on one device, term by term.

Parameters, optimizer state and batch are counted from their shardings. Saved activations are read off the traced VJP of
the model, on one device's part of the heads, the rows and their tokens. Working memory is estimated from shapes: a
compiler may need less, by fusing, or more, by keeping copies.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rope_jax.model.config import LlamaConfig
from rope_jax.model.flash import block_sizes
from rope_jax.model.llama import abstract_params
from rope_jax.rope.embedding import ScaleVector
from rope_jax.sharding import make_mesh, shards
from rope_jax.training.config import TrainConfig
from rope_jax.training.loss import COLUMNS
from rope_jax.training.update import HOST, Training


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, by name: of arrays that exist between steps, and of further ones in each part of a step.

    The parts are the backward pass of a block, the loss with its gradient, and the optimizer's update. `host` is bytes
    in host memory for this device.
    """

    arguments: dict[str, int]
    backward: dict[str, int]
    loss: dict[str, int]
    update: dict[str, int]
    host: int

    @property
    def largest(self) -> str:
        """The part of the step that needs most memory, 'backward', 'loss' or 'update'."""
        return max(("backward", "loss", "update"), key=lambda part: sum(getattr(self, part).values()))

    @property
    def terms(self) -> dict[str, int]:
        """All arrays of the largest part."""
        return self.arguments | getattr(self, self.largest)

    @property
    def peak(self) -> int:
        """Bytes of the largest part."""
        return sum(self.terms.values())


def account(training: Training, rope: ScaleVector) -> Memory:
    """The memory of a run's training step; of the scale vector only the shape counts."""
    config, mesh, model = training.config, training.mesh, training.model
    state = training.abstract_state(rope)
    frozen = training.objective.frozen(training.abstract_base(rope))
    arguments = {
        "weights": on_device(state.params),
        "optimizer state": on_device(state.opt_state, kind="device"),
        "batch": on_device((training.abstract_rows(), frozen.rope, frozen.original, state.step)),
    }
    if frozen.params is not None:
        arguments["frozen weights"] = on_device(frozen.params)

    gradients = sum(4 * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(state.params))
    local = _Local.of(training)
    width, tokens = jnp.dtype(model.dtype).itemsize, local.rows * local.length
    offloaded = model.remat == "offload"
    kept = model.num_layers * local.kept("full" if offloaded else model.remat)
    weights = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(local.model)["layers"])) // (local.rows + 1)
    head = model.hidden_size * local.model.vocab_size
    chunk = min(config.loss_chunk, local.length)
    (_, queries), (_, keys) = block_sizes(local.length, local.length, model.attention_chunk)
    backward = {
        # Those of this microbatch and the sum over earlier ones.
        "gradients": gradients * (2 if config.accumulation > 1 else 1),
        "kept activations": 0 if offloaded else kept,
        # What a policy does not save of a block is recomputed, and has a gradient.
        "a block's activations": 2 * local.kept("none"),
        # While a block computes, the next one's weights are gathered over `fsdp` and its gradient is scattered.
        "gathered weights": 2 * weights * width + 4 * weights if mesh.shape["fsdp"] > 1 else weights * width,
        # Scores of a pair of blocks, their exponentials, and the gradients of both, float32.
        "attention scores": 4 * 4 * local.rows * local.model.num_heads * queries * keys,
    }
    loss = {
        "gradients": gradients if config.accumulation > 1 else 0,
        "kept activations": 0 if offloaded else kept,
        "final states": 3 * tokens * model.hidden_size * width,
        # Float32, and some columns' exponentials and gradient.
        "logits": 4 * local.rows * chunk * (local.model.vocab_size + 2 * min(COLUMNS, local.model.vocab_size)),
        "gathered head": head * width + 4 * head,
    }
    update = {"gradients": gradients}
    if config.offload_optimizer:
        update["optimizer state in transit"] = on_device(state.opt_state, kind=HOST)
    host = on_device(state.opt_state, kind=HOST) + (kept if offloaded else 0)
    return Memory(arguments, backward, loss, update, host)


def measured(mesh: Mesh) -> int | None:
    """Peak bytes so far over this process's devices of a mesh; None where devices do not count."""
    stats = [device.memory_stats() for device in mesh.local_devices]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if stat and "peak_bytes_in_use" in stat]
    return max(peaks, default=None)


def on_device(tree, kind: str | None = None) -> int:
    """Bytes on each device of a pytree of arrays, or `jax.ShapeDtypeStruct`, in memory of a kind; None for any."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if kind in (None, leaf.sharding.memory_kind or "device")
    )


@dataclasses.dataclass(frozen=True)
class _Local:
    """One device's part of the model and of a microbatch: its heads and feed-forward width, its rows and tokens."""

    model: LlamaConfig
    config: TrainConfig
    rows: int
    length: int
    weight_shards: int

    @staticmethod
    def of(training: Training) -> _Local:
        mesh, model = training.mesh, training.model
        tensor, rows = mesh.shape["tensor"], training.config.rows // shards(mesh, "batch")
        local = dataclasses.replace(
            model,
            num_heads=model.num_heads // tensor,
            num_kv_heads=model.num_kv_heads // tensor,
            intermediate_size=model.intermediate_size // tensor,
            vocab_size=model.vocab_size // tensor,
            # Every layer keeps the same; a number of layers that no other axis has identifies what blocks keep.
            num_layers=rows + 1,
            attention="cpu",
        )
        length = training.config.length // mesh.shape["context"]
        return _Local(local, training.config, rows, length, mesh.shape["fsdp"])

    def kept(self, policy: str) -> int:
        """Bytes that the VJP of one block saves for the backward pass, without its weights."""
        model = dataclasses.replace(self.model, remat=policy)
        training = Training(model, dataclasses.replace(self.config, mix=None), make_mesh(1, 1, 1, jax.devices()[:1]))
        base = training.abstract_base(ScaleVector.create(np.ones(model.head_dim // 2)))
        trained, frozen = training.abstract_state(base.rope).params, training.objective.frozen(base)
        rows = jax.ShapeDtypeStruct((self.rows, self.length), jnp.int32)
        rows = dict.fromkeys(("tokens", "segment_ids", "positions"), rows)

        def residuals(trained, frozen, rows):
            given = {id(leaf) for leaf in jax.tree.leaves((trained, frozen, rows))}
            loss = training.loss(frozen)
            pullback = jax.vjp(lambda t: loss(t, rows)[0], trained)[1]
            return [leaf for leaf in jax.tree.leaves(pullback) if id(leaf) not in given]

        found = jax.eval_shape(residuals, trained, frozen, rows)
        stacked = {leaf.shape for leaf in jax.tree.leaves(abstract_params(model)["layers"])}
        layers = model.num_layers
        sizes = (
            # Copies of weights, such as in the dtype of the products, are sharded like the weights.
            leaf.size * leaf.dtype.itemsize // layers // (self.weight_shards if leaf.shape in stacked else 1)
            for leaf in found
            if leaf.ndim > 2 and leaf.shape[0] == layers
        )
        return sum(sizes)
