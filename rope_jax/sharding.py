"""Shardings: one table maps logical axes of arrays to axes of the device mesh."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rope_jax.errors import InputError

# The ring of `context` comes last, so that neighbours in it are neighbours in the machine.
AXES = ("data", "fsdp", "tensor", "context")

# Parameters are sharded over `fsdp` along the hidden size and over `tensor` along heads, feed-forward width and
# vocabulary (Megatron-LM, arXiv 1909.08053). Training shards rows of a batch over `data` and `fsdp` and their tokens
# over `context`; evaluation keeps sequences whole and shards rows over all three.
ROWS = {"batch": ("data", "fsdp"), "rows": ("data", "fsdp", "context")}
RULES = {
    **ROWS,
    "length": "context",
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "head_dim": None,
    "norm": None,
    "rank": None,
    "layers": None,
}


def make_mesh(data: int, fsdp: int, tensor: int, devices=None, *, context: int = 1) -> Mesh:
    """The device mesh `(data, fsdp, tensor, context)`.

    Args:
        data: number of replicas; at most one of the sizes may be -1, which takes the devices that are left.
        fsdp: number of shards of parameters and optimizer state.
        tensor: number of shards of heads, feed-forward width and vocabulary.
        devices: devices to use; default all.
        context: number of pieces of every sequence in training.
    """
    devices = jax.devices() if devices is None else devices
    sizes: dict[str, int] = dict(zip(AXES, (data, fsdp, tensor, context)))
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = {axis: size for axis, size in sizes.items() if size != -1}
    names = ", ".join(f"`{axis}`" for axis in AXES)
    for axis, size in fixed.items():
        if size < 1:
            raise InputError(f"`{axis}` is {size}: it must be positive, or -1 for the devices that are left")
    if len(free) > 1:
        raise InputError(f"`{free[1]}` is -1: at most one of {names} may be -1")
    taken = math.prod(fixed.values())
    if free and len(devices) % taken == 0:
        sizes[free[0]] = len(devices) // taken
    if math.prod(sizes.values()) != len(devices):
        wanted, fix = f"{taken} devices", f"set one of {names} to -1 to take what is left"
        if free:
            wanted, fix = f"a multiple of {taken} devices", "choose sizes whose product divides that"
        largest = max(fixed, key=fixed.__getitem__)
        raise InputError(
            f"`{largest}` is {sizes[largest]} in a mesh of {sizes}, which takes {wanted}, but there are "
            f"{len(devices)}: {fix}"
        )
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def shardings_of(abstract, specs, mesh: Mesh):
    """Shardings of a pytree of shapes, from `PartitionSpec` objects of logical names in a pytree of equal structure."""

    def sharding(path, leaf, logical):
        sharding = named(mesh, *logical)
        for size, name, axis in zip(leaf.shape, logical, sharding.spec):
            if axis is not None and size % mesh.shape[axis]:
                raise InputError(
                    f"`{axis}` is {mesh.shape[axis]}, which does not divide the {size} of axis '{name}' in "
                    f"{jax.tree_util.keystr(path)}: choose a divisor of {size}"
                )
        return sharding

    return jax.tree_util.tree_map_with_path(sharding, abstract, specs)


def spec(*names: str | None) -> PartitionSpec:
    """Mesh axes of an array with these logical axes; None for an axis that is not sharded."""
    return PartitionSpec(*(None if name is None else RULES[name] for name in names))


def named(mesh: Mesh, *names: str | None) -> NamedSharding:
    """Sharding of an array with these logical axes; None for an axis that is not sharded."""
    return NamedSharding(mesh, spec(*names))


def states_on(mesh: Mesh | None) -> Callable:
    """A function that shards hidden states `[B, T, E]` in training like their rows, whole along E.

    Without it the compiler leaves them cut as the embedding's rows are, along E over `fsdp`, and then adds up partial
    products of activations in every layer where gathering the layer's weights moves a fraction of that.
    """
    if mesh is None or mesh.size == 1:
        return lambda x: x
    return lambda x: jax.lax.with_sharding_constraint(x, named(mesh, "batch", "length", None))


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Sharding of a training batch `[..., B, T]` with a number of unsharded leading axes, such as microbatches."""
    return named(mesh, *(None,) * leading, "batch", "length")


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of an evaluation batch: whole rows over `data`, `fsdp` and `context`."""
    return named(mesh, "rows")


def process_rows(mesh: Mesh, rows: int) -> tuple[int, ...]:
    """Ascending numbers of the rows of a (micro)batch that this process holds; others may hold some of them too."""
    sharding = NamedSharding(mesh, PartitionSpec(ROWS["batch"]))
    held: Any = sharding.addressable_devices_indices_map((rows,)).values()
    return tuple(sorted({row for (cut,) in held for row in range(rows)[cut]}))


def place_rows(values: np.ndarray, held: Sequence[int], rows: int, sharding: NamedSharding, axis: int) -> jax.Array:
    """Assembles a global batch from the rows of each process.

    Args:
        values: this process's rows of the batch, along `axis`.
        held: their numbers in the batch, as `process_rows` returns them.
        rows: number of rows over all processes.
    """
    place = {row: index for index, row in enumerate(held)}
    shape = (*values.shape[:axis], rows, *values.shape[axis + 1 :])

    def piece(index):
        wanted = range(rows)[index[axis]]
        start = place[wanted[0]]
        # A device's rows are contiguous, here and in the batch.
        return values[*index[:axis], start : start + len(wanted), *index[axis + 1 :]]

    return jax.make_array_from_callback(shape, sharding, piece)


def cache_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a layer's KV cache, arrays `[B, K, ...]`: rows like `row_sharding`, heads over `tensor`."""
    return named(mesh, "rows", "kv_heads")


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that is replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: Mesh, rows: int, field: str, axis: str = "batch") -> None:
    """Checks that the rows of a (micro)batch over all processes divide over the mesh.

    The InputError names `field`, the caller's argument; `axis` is 'batch' for rows to train on, 'rows' for evaluation.
    """
    count = shards(mesh, axis)
    if rows < 1 or rows % count:
        raise InputError(
            f"`{field}` is {rows}, but the mesh spreads rows over {' x '.join(ROWS[axis])} = {count} devices: "
            f"make it a multiple of {count}"
        )


def shards(mesh: Mesh, axis: str) -> int:
    """Number of shards of an axis of rows, 'batch' or 'rows'."""
    return math.prod(mesh.shape[name] for name in ROWS[axis])
