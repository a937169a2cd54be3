"""Sequence parallelism: sequences are sharded over the mesh axis `context`.

The training step takes rows in their natural order. Within it, each row is laid out in the order of ring attention
(`rope_jax.model.ring`), in which an even cut gives every device the same work. What looks at single tokens does not
notice; positions and documents travel with their tokens, and targets are formed before.

Shapes: B rows, T tokens, n devices of the axis.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
from jax.sharding import Mesh

from rope_jax.errors import InputError
from rope_jax.model.backends import attend, check_backend, ring_kernel
from rope_jax.model.config import LlamaConfig
from rope_jax.model.ring import Ring, ring_attention, zigzag
from rope_jax.sharding import named, spec


def attention_on(config: LlamaConfig, mesh: Mesh | None) -> Callable:
    """The attention of a model whose arrays are spread over a mesh.

    Args:
        config: model config.
        mesh: device mesh; None for one device.

    Returns:
        Function of query, key, value and segment ids, as `backends.attend`; with a context axis of more than one
        device they are in ring order.

    Raises:
        InputError: if the mesh asks for a ring that the backend has not (see `backends.ring_kernel`).
    """
    local = partial(attend, config=config)
    if mesh is None or mesh.size == 1:
        return local
    if _cut(mesh):
        specs = (spec("batch", "length", "heads"), spec("batch", "length", "kv_heads"), spec("batch", "length"))
        kernel = ring_kernel(config)
        return partial(
            ring_attention,
            ring=Ring(mesh, "context", specs, config.attention_chunk, config.sliding_window, kernel),
        )
    query, key = spec("batch", None, "heads"), spec("batch", None, "kv_heads")
    # Each device by itself, also in plain JAX: left to the compiler, all would visit the blocks that any of them needs.
    # Not checked: kernels do not say which of their values vary over which axes.
    return jax.shard_map(local, mesh=mesh, in_specs=(query, key, key, spec("batch")), out_specs=query, check_vma=False)


def check_attention(config: LlamaConfig, mesh: Mesh) -> None:
    """Checks that a model's attention can be computed on a mesh of this machine's devices.

    Args:
        config: model config.
        mesh: device mesh.

    Raises:
        InputError: if its backend is not available, or has no ring for this model.
    """
    if _cut(mesh):
        ring_kernel(config)
    check_backend(config)


def check_length(mesh: Mesh, length: int) -> None:
    """Checks that sequences divide over the mesh.

    Args:
        mesh: device mesh.
        length: tokens T of a row.

    Raises:
        InputError: if they do not; `length` is at fault.
    """
    pieces = 2 * _devices(mesh)
    if _cut(mesh) and length % pieces:
        raise InputError(
            f"`length` is {length}, but the mesh axis `context` = {pieces // 2} cuts sequences into {pieces} equal "
            f"pieces: make it a multiple of {pieces}",
            field="length",
        )


def in_ring_order(rows, mesh: Mesh | None):
    """Rows as the model takes them on a mesh.

    Args:
        rows: pytree of arrays `[B, T]`, in natural order.
        mesh: device mesh; None for one device.

    Returns:
        The pytree in ring order, sharded over the context axis; unchanged without one.
    """
    if mesh is None or not _cut(mesh):
        return rows

    def place(row):
        moved = row[:, zigzag(row.shape[1], _devices(mesh))]
        return jax.lax.with_sharding_constraint(moved, named(mesh, "batch", "length"))

    return jax.tree.map(place, rows)


def _devices(mesh: Mesh) -> int:
    return mesh.shape["context"]


def _cut(mesh: Mesh) -> bool:
    return _devices(mesh) > 1
