"""What a training step keeps in the memory of one device, term by term.

Parameters, moments and batch are counted from their shardings, and what the backward pass keeps from what
differentiating the model's own code keeps, on one device's part of the heads, the rows and their tokens. Working
memory is estimated from shapes: a compiler may need less, by fusing, or more, by keeping copies.
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
from rope_jax.sharding import batch_sharding, make_mesh, param_shardings, replicated, shards
from rope_jax.training import trained
from rope_jax.training.loss import COLUMNS
from rope_jax.training.state import HOST
from rope_jax.training.trained import TrainConfig


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        arguments: what is there between steps, by name: weights, moments, the batch.
        backward: what the backward pass of a block has on top, by name.
        loss: what the loss and its gradient have on top, by name.
        update: what the optimizer's update has on top, by name.
        host: what lies in the host's memory for this device.
    """

    arguments: dict[str, int]
    backward: dict[str, int]
    loss: dict[str, int]
    update: dict[str, int]
    host: int

    @property
    def largest(self) -> str:
        """The part of the step with the largest need, 'backward', 'loss' or 'update'."""
        return max(("backward", "loss", "update"), key=lambda part: sum(getattr(self, part).values()))

    @property
    def terms(self) -> dict[str, int]:
        """All that is there at once in the largest part."""
        return self.arguments | getattr(self, self.largest)

    @property
    def peak(self) -> int:
        """Bytes in the largest part of a step."""
        return sum(self.terms.values())


def account(config: LlamaConfig, run: TrainConfig, mesh: Mesh, rope: ScaleVector) -> Memory:
    """The memory of a training step.

    Args:
        config: model config.
        run: see `TrainConfig`.
        mesh: from `make_mesh`.
        rope: scale vector, for its shape.

    Returns:
        The account.
    """
    state, layout = trained.state_layout(config, run, mesh, rope)
    rows = jax.ShapeDtypeStruct(
        (run.accumulation, run.global_batch // run.accumulation, run.length),
        jnp.int32,
        sharding=batch_sharding(mesh, 1),
    )
    moments = (state.opt_state, layout.opt_state)
    arguments = {
        "weights": on_device(state.params, layout.params),
        "moments": on_device(*moments, kind="device"),
        "batch": 3 * on_device(rows, rows.sharding)
        # A scale vector that is trained is among the weights.
        + (0 if run.learn else on_device(rope, jax.tree.map(lambda _: replicated(mesh), rope)))
        + on_device(state.step, layout.step),
    }
    if run.lora:
        arguments["frozen weights"] = on_device(abstract_params(config), param_shardings(config, mesh))

    gradients = sum(
        4 * math.prod(s.shard_shape(leaf.shape))
        for leaf, s in zip(jax.tree.leaves(state.params), jax.tree.leaves(layout.params))
    )
    local = _Local.of(config, run, mesh)
    width, tokens = jnp.dtype(config.dtype).itemsize, local.rows * local.length
    offloaded = config.remat == "offload"
    kept = config.num_layers * local.kept("full" if offloaded else config.remat)
    weights = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(local.config)["layers"])) // (local.rows + 1)
    head = config.hidden_size * local.config.vocab_size
    chunk = min(run.loss_chunk, local.length)
    _, queries, _, keys = block_sizes(local.length, local.length, config.attention_chunk)
    backward = {
        # Those of this microbatch, beside the sum over the ones before.
        "gradients": gradients * (2 if run.accumulation > 1 else 1),
        "kept activations": 0 if offloaded else kept,
        # What a policy does not keep of a block is formed once more, with the gradient of it.
        "a block's activations": 2 * local.kept("none"),
        # The next block's weights come while one computes, and its gradient leaves; whole along `fsdp`.
        "gathered weights": 2 * weights * width + 4 * weights if mesh.shape["fsdp"] > 1 else weights * width,
        # Scores of a pair of blocks, their exponentials, and the gradient of each, float32.
        "attention scores": 4 * 4 * local.rows * local.config.num_heads * queries * keys,
    }
    loss = {
        "gradients": gradients if run.accumulation > 1 else 0,
        "kept activations": 0 if offloaded else kept,
        "final states": 3 * tokens * config.hidden_size * width,
        # Float32, and some columns' exponentials and gradient.
        "logits": 4 * local.rows * chunk * (local.config.vocab_size + 2 * min(COLUMNS, local.config.vocab_size)),
        "gathered head": head * width + 4 * head,
    }
    update = {"gradients": gradients}
    if run.offload_optimizer:
        update["moments on their way"] = on_device(*moments, kind=HOST)
    host = on_device(*moments, kind=HOST) + (kept if offloaded else 0)
    return Memory(arguments, backward, loss, update, host)


def measured(mesh: Mesh) -> int | None:
    """The most bytes that any of this process's devices of a mesh has held so far; None where they do not say."""
    stats = [device.memory_stats() for device in mesh.local_devices]
    peaks = [stat["peak_bytes_in_use"] for stat in stats if stat and "peak_bytes_in_use" in stat]
    return max(peaks, default=None)


def on_device(tree, shardings, kind: str | None = None) -> int:
    """Bytes of a pytree on each device.

    Args:
        tree: arrays, concrete or abstract.
        shardings: pytree of shardings like it.
        kind: only those in this memory; None for all.

    Returns:
        Bytes.
    """
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in pairs
        if kind in (None, sharding.memory_kind or "device")
    )


@dataclasses.dataclass(frozen=True)
class _Local:
    """One device's part of the model and of a microbatch: its heads and feed-forward width, its rows and tokens."""

    config: LlamaConfig
    run: TrainConfig
    rows: int
    length: int
    weight_shards: int

    @staticmethod
    def of(config: LlamaConfig, run: TrainConfig, mesh: Mesh) -> _Local:
        tensor, rows = mesh.shape["tensor"], run.global_batch // run.accumulation // shards(mesh, "batch")
        local = dataclasses.replace(
            config,
            num_heads=config.num_heads // tensor,
            num_kv_heads=config.num_kv_heads // tensor,
            intermediate_size=config.intermediate_size // tensor,
            vocab_size=config.vocab_size // tensor,
            # Any number of layers keeps the same for each; one that no other axis has tells what blocks keep.
            num_layers=rows + 1,
            attention="cpu",
        )
        return _Local(local, run, rows, run.length // mesh.shape["context"], mesh.shape["fsdp"])

    def kept(self, policy: str) -> int:
        """Bytes that differentiating one block keeps for the backward pass, its weights as they are left out."""
        config = dataclasses.replace(self.config, remat=policy)
        rope = ScaleVector.create(np.ones(config.head_dim // 2))
        one = make_mesh(1, 1, 1, jax.devices()[:1])
        weights, _ = trained.layout(config, self.run, one, rope)
        frozen = abstract_params(config) if self.run.lora else None
        rows = jax.ShapeDtypeStruct((self.rows, self.length), jnp.int32)
        rows = dict.fromkeys(("tokens", "segment_ids", "positions"), rows)

        def residuals(weights, frozen, rows):
            given = {id(leaf) for leaf in jax.tree.leaves((weights, frozen, rows))}
            loss = trained.loss(config, self.run, frozen, rope)
            pullback = jax.vjp(lambda w: loss(w, rows)[0], weights)[1]
            return [leaf for leaf in jax.tree.leaves(pullback) if id(leaf) not in given]

        found = jax.eval_shape(residuals, weights, frozen, rows)
        stacked = {leaf.shape for leaf in jax.tree.leaves(abstract_params(config)["layers"])}
        layers = config.num_layers
        sizes = (
            # Copies of weights, such as in the dtype of the products, are cut as these are.
            leaf.size * leaf.dtype.itemsize // layers // (self.weight_shards if leaf.shape in stacked else 1)
            for leaf in found
            if leaf.ndim > 2 and leaf.shape[0] == layers
        )
        return sum(sizes)
