"""Ring attention (arXiv 2310.01889): the sequence is cut over devices, keys and values go around.

Every device keeps its queries and, in as many steps as there are devices, sees everybody's keys and values; partial
softmaxes are merged by their log-sum-exp, so that the result is that of one device, exactly but for rounding. Under a
causal mask a plain cut leaves the first devices idle. In the zigzag order (arXiv 2311.09431; Llama 3, 2407.21783) the
sequence is cut into twice as many pieces as there are devices and device i holds pieces i and 2n-1-i: then every
device has the same work in every step, two products of pieces, none of them masked away whole.

Shapes on one device: B rows, C tokens per piece, K key heads, G = H / K, D head dimension.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rope_jax.errors import InputError
from rope_jax.model.attention import MASKED


def zigzag(length: int, devices: int) -> np.ndarray:
    """The order in which tokens are laid out, so that an even cut gives device i pieces i and 2n-1-i.

    Args:
        length: tokens T of a row, a multiple of twice the devices.
        devices: n, along the axis that cuts the sequence.

    Returns:
        int32 `[T]`: the token at each place; `numpy.argsort` of it is the way back.

    Raises:
        InputError: if the length does not divide.
    """
    if length % (2 * devices):
        raise InputError(
            f"config.mesh.context is {devices}, which asks for sequences of a multiple of {2 * devices} tokens, and "
            f"they have {length}: change one of them"
        )
    pieces = np.arange(length, dtype=np.int32).reshape(2 * devices, -1)
    return np.concatenate([pieces[[i, 2 * devices - 1 - i]].reshape(-1) for i in range(devices)])


def ring_attention(query, key, value, segment_ids, *, mesh: Mesh, specs: tuple, axis: str, chunk: int, window=None):
    """Causal self-attention of sequences that are cut over devices in zigzag order.

    Args:
        query: `[B, T, H, D]`, tokens in the order of `zigzag`, like all others.
        key: `[B, T, K, D]`.
        value: `[B, T, K, D]`.
        segment_ids: int32 `[B, T]`; a query sees only keys of its own id.
        mesh: devices.
        specs: `PartitionSpec` of query, of key and value, and of `segment_ids`, in all of which `axis` cuts T.
        axis: mesh axis of the ring.
        chunk: queries at a time.
        window: tokens that a query sees, its own included; None is all before it.

    Returns:
        `[B, T, H, D]` in the dtype of `query`.
    """
    devices = mesh.shape[axis]
    local = partial(_local, devices=devices, axis=axis, chunk=chunk, window=window)
    q_spec, kv_spec, segment_spec = specs
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(q_spec, kv_spec, kv_spec, segment_spec),
        out_specs=q_spec,
        # Not checked: a custom gradient hides which values vary over which axes.
        check_vma=False,
    )(query, key, value, segment_ids)


def _local(query, key, value, segment_ids, *, devices, axis, chunk, window):
    """What one device does, in whose hands are its two pieces of every sequence."""
    b, t, h, d = query.shape
    k = key.shape[2]
    scale = jnp.asarray(d**-0.5, query.dtype)
    grouped = (query * scale).reshape(b, 2, t // 2, k, h // k, d).transpose(1, 0, 3, 4, 2, 5)
    key, value = (x.reshape(b, 2, t // 2, k, d).transpose(1, 0, 3, 2, 4) for x in (key, value))
    segments = segment_ids.reshape(b, 2, t // 2).swapaxes(0, 1)
    out = _ring(grouped, key, value, segments, devices, axis, chunk, window)
    return out.transpose(1, 0, 4, 2, 3, 5).reshape(b, t, h, d)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _ring(query, key, value, segments, devices, axis, chunk, window):
    """Of scaled queries `[2, B, K, G, C, D]`, keys and values `[2, B, K, C, D]`, segments `[2, B, C]`: as queries."""
    return _ring_forward(query, key, value, segments, devices, axis, chunk, window)[0]


def _ring_forward(query, key, value, segments, devices, axis, chunk, window):
    # Masks depend on documents and places only, not on a layer: under a differentiated scan over layers, JAX would form
    # all of them in front of it, T^2 / n bytes and more. Tied to the queries, they are formed where they are used.
    query, segments, me = jax.lax.optimization_barrier((query, segments, jax.lax.axis_index(axis)))

    def step(number, pieces, state):
        held, source = pieces, (me - number) % devices
        for q, k in _products(number, me, source):
            mask = _mask(segments, held[2], q, k, me, source, devices, window)
            state = _merge(state, q, _attend(query[q], held[0][k], held[1][k], mask, chunk))
        return state

    def move(number, carry):
        pieces, state = carry
        # Independent of the step, so that sending and computing may overlap.
        return _pass_on(pieces, devices, axis), step(number, pieces, state)

    shape = query.shape
    state = jnp.zeros(shape, jnp.float32), jnp.full(shape[:-1], MASKED, jnp.float32)
    pieces = (key, value, segments)
    carry = _pass_on(pieces, devices, axis), step(0, pieces, state)
    _, (out, log_sum) = jax.lax.fori_loop(1, devices, move, carry)
    out = out.astype(query.dtype)
    return out, (query, key, value, segments, out, log_sum)


def _ring_backward(devices, axis, chunk, window, residuals, d_out):
    query, key, value, segments, out, log_sum = residuals
    me = jax.lax.axis_index(axis)
    # Of a softmax's gradient, what all its scores share.
    shared = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

    def step(number, pieces, grads, d_query):
        held, source = pieces, (me - number) % devices
        d_key, d_value = grads
        for q, k in _products(number, me, source):
            mask = _mask(segments, held[2], q, k, me, source, devices, window)
            dq, dk, dv = _attend_backward(
                query[q], held[0][k], held[1][k], mask, log_sum[q], shared[q], d_out[q], chunk
            )
            d_query, d_key, d_value = d_query.at[q].add(dq), d_key.at[k].add(dk), d_value.at[k].add(dv)
        return (d_key, d_value), d_query

    def move(number, carry):
        pieces, grads, d_query = carry
        grads, d_query = step(number, pieces, grads, d_query)
        return _pass_on(pieces, devices, axis), _pass_on(grads, devices, axis), d_query

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (key, value))
    pieces = (key, value, segments)
    grads, d_query = step(0, pieces, zeros, jnp.zeros(query.shape, jnp.float32))
    # Gradients go around with the keys and values that they belong to, and are home after as many steps as devices.
    carry = _pass_on(pieces, devices, axis), _pass_on(grads, devices, axis), d_query
    _, (d_key, d_value), d_query = jax.lax.fori_loop(1, devices, move, carry)
    return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype), None


_ring.defvjp(_ring_forward, _ring_backward)


def _products(number, me, source):
    """Which pieces of queries meet which of the keys held in a step; the number of products is everybody's."""
    if isinstance(number, int):  # the first step: one's own keys
        return (0, 0), (1, 0), (1, 1)
    # The first pieces of earlier devices come before both of ours, both pieces of later ones before our second.
    earlier = jnp.where(source < me, 0, 1)
    return (1, 0), (earlier, earlier)


def _mask(segments, held, q, k, me, source, devices, window):
    """Which keys each query sees: `(rows, columns, query segments, key segments, window)`, compared chunk by chunk."""
    size = segments.shape[-1]

    def places(piece, device):
        return jnp.where(piece == 0, device, 2 * devices - 1 - device) * size + jnp.arange(size)

    return places(q, me), places(k, source), segments[q], held[k], window


def _visible(mask, start, chunk):
    rows, columns, query_segments, key_segments, window = mask
    rows = jax.lax.dynamic_slice_in_dim(rows, start, chunk)[:, None]
    query_segments = jax.lax.dynamic_slice_in_dim(query_segments, start, chunk, axis=1)
    seen = columns <= rows
    if window is not None:
        seen &= columns > rows - window
    return (seen[None] & (query_segments[:, :, None] == key_segments[:, None, :]))[:, None, None]


def _scores(query, key, mask, start, chunk):
    part = jax.lax.dynamic_slice_in_dim(query, start, chunk, axis=3)
    scores = jnp.einsum("bkgtd,bksd->bkgts", part, key, preferred_element_type=jnp.float32)
    return part, jnp.where(_visible(mask, start, chunk), scores, MASKED)


def _starts(size, chunk):
    chunk = next(c for c in range(min(chunk, size), 0, -1) if size % c == 0)
    return jnp.arange(0, size, chunk), chunk


def _attend(query, key, value, mask, chunk):
    """One product of pieces: outputs float32 `[B, K, G, C, D]`, and the log of each softmax's sum `[B, K, G, C]`."""
    starts, chunk = _starts(query.shape[3], chunk)

    def part(start):
        _, scores = _scores(query, key, mask, start, chunk)
        highest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - highest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = jnp.einsum("bkgts,bksd->bkgtd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
        return out / total, (highest + jnp.log(total))[..., 0]

    out, log_sum = jax.lax.map(part, starts)
    return _joined(out), _joined(log_sum)


def _attend_backward(query, key, value, mask, log_sum, shared, d_out, chunk):
    """Gradients, float32, of one product of pieces with respect to its queries, keys and values."""
    starts, chunk = _starts(query.shape[3], chunk)

    def part(grads, start):
        d_key, d_value = grads
        q, scores = _scores(query, key, mask, start, chunk)
        d, total, common = (jax.lax.dynamic_slice_in_dim(x, start, chunk, axis=3) for x in (d_out, log_sum, shared))
        weights = jnp.exp(scores - total[..., None])
        d_weights = jnp.einsum("bkgtd,bksd->bkgts", d, value, preferred_element_type=jnp.float32)
        d_scores = (weights * (d_weights - common[..., None])).astype(key.dtype)
        sums = partial(jnp.einsum, preferred_element_type=jnp.float32)
        d_key += sums("bkgts,bkgtd->bksd", d_scores, q)
        d_value += sums("bkgts,bkgtd->bksd", weights.astype(d.dtype), d)
        return (d_key, d_value), sums("bkgts,bksd->bkgtd", d_scores, key)

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (key, value))
    (d_key, d_value), d_query = jax.lax.scan(part, zeros, starts)
    return _joined(d_query), d_key, d_value


def _joined(chunks):
    """Chunks `[N, B, K, G, c, ...]` as `[B, K, G, N c, ...]`."""
    moved = jnp.moveaxis(chunks, 0, 3)
    return moved.reshape(*moved.shape[:3], -1, *moved.shape[5:])


def _merge(state, piece, part):
    """Two softmaxes over different keys as one over all of them."""
    out, log_sum = state
    total = jnp.logaddexp(log_sum[piece], part[1])
    mixed = out[piece] * jnp.exp(log_sum[piece] - total)[..., None] + part[0] * jnp.exp(part[1] - total)[..., None]
    return out.at[piece].set(mixed), log_sum.at[piece].set(total)


def _pass_on(tree, devices, axis):
    ring = [(device, (device + 1) % devices) for device in range(devices)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, ring), tree)
