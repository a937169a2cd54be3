"""Sequence parallelism: sequences are sharded over the mesh axis `context`.

The training step lays each row out in the order of ring attention (`rope_jax.model.ring`), in which an even cut gives
every device the same work. Positions and documents travel with their tokens, and targets are formed before.
"""

from collections.abc import Callable
from functools import partial

import jax
from jax.sharding import Mesh

from rope_jax.errors import InputError
from rope_jax.model.backends import attend_on, check_backend, ring_kernel
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import Inputs, Pass, forward
from rope_jax.model.ring import Ring, ring_attention, zigzag
from rope_jax.sharding import named, spec, states_on
from rope_jax.training.state import Variables


def attention_on(config: LlamaConfig, mesh: Mesh | None) -> Callable:
    """`attend` for a model whose arrays are spread over a mesh, None for one device; rows are in ring order."""
    if mesh is not None and _cut(mesh):
        specs = (spec("batch", "length", "heads"), spec("batch", "length", "kv_heads"), spec("batch", "length"))
        window, kernel = config.sliding_window, ring_kernel(config)
        return partial(ring_attention, ring=Ring(mesh, "context", specs, config.attention_chunk, window, kernel))
    # Each device by itself, also in plain JAX: left to the compiler, all would visit the blocks that any of them needs.
    return attend_on(config, mesh, "batch")


def check_attention(config: LlamaConfig, mesh: Mesh) -> None:
    """Raises InputError if the attention's backend is not available here, or has no ring for this model on a mesh."""
    check_backend(config, ring=_cut(mesh))


def check_length(mesh: Mesh, length: int) -> None:
    """Raises InputError if sequences of `length` tokens do not divide over the mesh."""
    devices = mesh.shape["context"]
    pieces = 2 * devices
    if _cut(mesh) and length % pieces:
        raise InputError(
            f"`length` is {length}, but the mesh axis `context` = {devices} cuts sequences into {pieces} equal "
            f"pieces: make it a multiple of {pieces}"
        )


def forward_on(
    mesh: Mesh | None, model: LlamaConfig, variables: Variables, rows: dict, inspect: Callable = lambda states: None
) -> Pass:
    """`forward` of int32 `[B, T]` rows in ring order, with arrays spread over a mesh; None for one device."""
    return forward(
        variables.params,
        model,
        variables.rope,
        Inputs(**rows),
        lora=variables.adapters,
        attend=attention_on(model, mesh),
        place=states_on(mesh),
        inspect=inspect,
    )


def in_ring_order(rows, mesh: Mesh | None):
    """A pytree of arrays `[B, T]` in ring order, sharded over the context axis; unchanged without one."""
    if mesh is None or not _cut(mesh):
        return rows

    def place(row):
        moved = row[:, zigzag(row.shape[1], mesh.shape["context"])]
        return jax.lax.with_sharding_constraint(moved, named(mesh, "batch", "length"))

    return jax.tree.map(place, rows)


def _cut(mesh: Mesh) -> bool:
    return mesh.shape["context"] > 1
