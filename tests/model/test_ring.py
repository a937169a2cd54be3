"""Ring attention on virtual devices against attention on one, in value and gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from rope_jax.errors import InputError
from rope_jax.model.attention import causal_attention
from rope_jax.model.ring import BlockPieces, ring_attention, zigzag

B, T, H, K, D = 2, 64, 4, 2, 8
SPECS = (PartitionSpec("data", "context"), PartitionSpec("data", "context"), PartitionSpec("data", "context"))


def arrays(seed=0):
    generator = np.random.default_rng(seed)
    q, k, v = (generator.normal(size=(B, T, heads, D)).astype(np.float32) for heads in (H, K, K))
    segments = np.sort(generator.integers(1, 4, (B, T)), axis=1).astype(np.int32)
    return q, k, v, segments


def devices(data, context):
    chosen = jax.devices()[: data * context]
    return jax.make_mesh((data, context), ("data", "context"), axis_types=(AxisType.Auto,) * 2, devices=chosen)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_zigzag_gives_every_device_an_early_and_a_late_piece(devices):
    order = zigzag(32, devices)
    assert sorted(order) == list(range(32))
    for device, places in enumerate(order.reshape(devices, -1)):
        size = 16 // devices
        first = range(device * size, (device + 1) * size)
        last = range(32 - (device + 1) * size, 32 - device * size)
        assert places.tolist() == [*first, *last]


def test_length_that_does_not_divide():
    with pytest.raises(InputError, match=r"config\.mesh\.context is 4.*multiple of 8.*they have 20"):
        zigzag(20, 4)


# (2, 4) is in test_backends.py.
@pytest.mark.parametrize(("data", "context"), [(2, 2), (1, 8)])
@pytest.mark.parametrize("window", [None, 13])
def test_equals_one_device(data, context, window):
    mesh = devices(data, context)
    q, k, v, segments = arrays()
    order = zigzag(T, context)
    cotangent = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)

    def alone(q, k, v):
        return causal_attention(q, k, v, segments, T, window)

    def ring(q, k, v):
        arrays = (x[:, order] for x in (q, k, v, segments))
        out = ring_attention(*arrays, mesh=mesh, specs=SPECS, axis="context", pieces=BlockPieces(4, window))
        return out[:, np.argsort(order)]

    expected, pull = jax.jit(lambda *x: jax.vjp(alone, *x))(q, k, v)
    found, ring_pull = jax.jit(lambda *x: jax.vjp(ring, *x))(q, k, v)
    # float32 sums of up to 64 terms of order 1 in another order.
    np.testing.assert_allclose(found, expected, atol=2e-6)
    for ours, theirs in zip(jax.jit(ring_pull)(cotangent), jax.jit(pull)(cotangent)):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_bfloat16_and_finite_where_nothing_is_seen():
    mesh = devices(1, 4)
    q, k, v, _ = (jnp.asarray(x, jnp.bfloat16) for x in arrays())
    segments = jnp.tile(jnp.arange(T, dtype=jnp.int32), (B, 1))  # every token is a document of its own
    order = zigzag(T, 4)
    ring = jax.jit(partial(ring_attention, mesh=mesh, specs=SPECS, axis="context", pieces=BlockPieces(8)))
    out = ring(*(x[:, order] for x in (q, k, v, segments)))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, jnp.repeat(v, H // K, axis=2)[:, order])
