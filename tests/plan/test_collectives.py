"""Communication of compiled programs, against what is known of them by construction."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rope_jax.plan.collectives import Collective, collectives
from rope_jax.sharding import make_mesh


def compiled(function, *shapes):
    mesh = make_mesh(2, 4, 1)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec)) for shape, spec in shapes]
    return collectives(jax.jit(function(mesh)).lower(*arrays).compile().as_text())


def gather(mesh):
    return jax.shard_map(
        lambda x: jax.lax.all_gather(x, "fsdp", tiled=True),
        mesh=mesh,
        in_specs=P("fsdp"),
        out_specs=P(),
        check_vma=False,
    )


def repeated_sum(mesh):
    def steps(x):
        return jax.lax.scan(lambda c, _: (jax.lax.psum(c, ("data", "fsdp")) / 8, None), x, None, length=5)[0]

    return jax.shard_map(steps, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)


def turn(mesh):
    def move(x):
        return jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)])

    return jax.shard_map(move, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"))


# An array of 64 x 16 float32 has 4096 bytes.
@pytest.mark.parametrize(
    ("function", "spec", "expected"),
    [
        (gather, P("fsdp"), Collective("all-gather", 1, 4096 * 3 / 4)),
        (repeated_sum, P(), Collective("all-reduce", 5, 5 * 2 * 4096 * 7 / 8)),
        (turn, P("fsdp"), Collective("collective-permute", 1, 1024)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_known_programs(function, spec, expected):
    assert compiled(function, ((64, 16), spec)) == (expected,)


@pytest.mark.parametrize(
    "groups", ["{{0,1,2,3},{4,5,6,7}}", "[2,4]<=[8]", "mesh['a'=2,'b'=4] {'b'}", "mesh['a'=2,'b'=8] {'b':(1)4}"]
)
def test_groups_are_read_in_every_form(groups):
    text = "\n".join(
        (
            "HloModule m",
            "%body (p: f32[4]) -> f32[16] {",
            f"  %x = f32[16]{{0}} all-gather(%p), channel_id=1, replica_groups={groups}, dimensions={{0}}",
            "}",
            "ENTRY %main (p: f32[4]) -> f32[16] {",
            '  %w = f32[16] while(%p), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}',
            f"  %y = (f32[4], bf16[8]) reduce-scatter(%p, %q), replica_groups={groups}, to_apply=%add",
            "}",
        )
    )
    assert collectives(text) == (
        Collective("all-gather", 3, 3 * 64 * 3 / 4),
        Collective("reduce-scatter", 1, 3 * (16 + 16)),
    )
