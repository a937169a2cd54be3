"""Ring attention on virtual devices against attention by definition, in value and gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from rope_jax.errors import InputError
from rope_jax.model.ring import Ring, ring_attention, zigzag
from tests.model.references import allowed_keys, dense

B, T, H, K, D = 2, 64, 4, 2, 8
SPECS = (PartitionSpec("data", "context"), PartitionSpec("data", "context"), PartitionSpec("data", "context"))


def arrays():
    rng = np.random.default_rng(0)
    q, k, v, cotangent = (rng.normal(size=(B, T, heads, D)).astype(np.float32) for heads in (H, K, K, H))
    return q, k, v, np.sort(rng.integers(1, 4, (B, T)), axis=1).astype(np.int32), cotangent


def ring_of(data, context, chunk, window=None):
    chosen = jax.devices()[: data * context]
    types = (AxisType.Auto,) * 2
    mesh = jax.make_mesh((data, context), ("data", "context"), axis_types=types, devices=chosen)
    return Ring(mesh, "context", SPECS, chunk, window)


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
    with pytest.raises(InputError, match="multiple of 8") as error:
        zigzag(20, 4)
    assert error.value.field == "length"


# (2, 4) is in test_backends.py.
@pytest.mark.parametrize(("data", "context", "window"), [(2, 2, 13), (1, 8, None)])
def test_equals_the_definition(data, context, window):
    *inputs, cotangent = arrays()
    order = zigzag(T, context)
    attention = partial(ring_attention, ring=ring_of(data, context, 4, window))

    @jax.jit
    def both(q, k, v, segments, cotangent):
        out, pull = jax.vjp(lambda *x: attention(*x, segments), q, k, v)
        return out, *pull(cotangent)

    found = both(*(x[:, order] for x in (*inputs, cotangent)))
    out, gradients = dense(*inputs[:3], allowed_keys(inputs[3], window), cotangent)
    # float32 sums of up to 64 terms of order 1 in another order.
    for ours, theirs, atol in zip(found, (out, *gradients), (2e-6, 1e-5, 1e-5, 1e-5)):
        np.testing.assert_allclose(ours, theirs[:, order], atol=atol)


def test_bfloat16_and_finite_where_nothing_is_seen():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in arrays()[:3])
    segments = jnp.tile(jnp.arange(T, dtype=jnp.int32), (B, 1))  # every token is a document of its own
    order = zigzag(T, 4)
    ring = jax.jit(partial(ring_attention, ring=ring_of(1, 4, 8)))
    out = ring(*(x[:, order] for x in (q, k, v, segments)))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, jnp.repeat(v, H // K, axis=2)[:, order])
