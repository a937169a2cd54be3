"""Ring attention (arXiv 2310.01889): the sequence is cut over devices, keys and values go around.

Every device keeps its queries and, in as many steps as there are devices, sees everybody's keys and values; partial
softmaxes are merged by their log-sum-exp, so that the result is that of one device, exactly but for rounding. Under a
causal mask a plain cut leaves the first devices idle. In the zigzag order (arXiv 2311.09431; Llama 3, 2407.21783) the
sequence is cut into twice as many pieces as there are devices and device i holds pieces i and 2n-1-i: then every
device has the same work in every step, two products of pieces, none of them masked away whole.

Shapes on one device: B rows, C tokens per piece, K key heads, G = H / K, D head dimension.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from rope_jax.errors import InputError
from rope_jax.model.attention import by_head, heads_last
from rope_jax.model.flash import MASKED, Tokens, attend_blocks, attend_blocks_gradient
from rope_jax.model.remat import ATTENTION


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


@dataclasses.dataclass(frozen=True)
class BlockPieces:
    """The products of a ring in plain JAX, on any platform; what computes them elsewhere has the same two methods.

    Attributes:
        chunk: queries and keys at a time, about.
        window: places that a query sees, its own included; None is all before it.
    """

    chunk: int
    window: int | None = None

    def attend(self, query, key, value, queries: Tokens, keys: Tokens, causal: bool):
        """Attention of one piece of queries to one piece of keys.

        Args:
            query: `[B, K, G, C, D]`, scaled, as for `attend_blocks`, like all that are not named here.
            key: likewise.
            value: likewise.
            queries: likewise.
            keys: likewise.
            causal: whether the two pieces are one, under a causal mask; otherwise all keys come before all queries.

        Returns:
            Outputs float32 `[B, K, G, C, D]`, and the log of each softmax's sum float32 `[B, K, G, C]`, which counts
            for nothing beside others where a query sees no key.
        """
        return attend_blocks(query, key, value, queries, keys, self.chunk, self.window)

    def gradient(self, query, key, value, queries: Tokens, keys: Tokens, log_sum, out, d_out, causal: bool):
        """What one piece of keys adds to the gradient of a softmax over many.

        Args:
            query: as for `attend`, like all that are not named here.
            key: likewise.
            value: likewise.
            queries: likewise.
            keys: likewise.
            log_sum: float32 `[B, K, G, C]`, of the whole softmax.
            out: `[B, K, G, C, D]`, of the whole softmax.
            d_out: `[B, K, G, C, D]`, gradient of `out`.
            causal: likewise.

        Returns:
            Gradients of query, key and value, float32, shaped as they are.
        """
        # Of a softmax's gradient, what all its scores share.
        shared = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
        parts = query, key, value, queries, keys, log_sum, shared, d_out
        return attend_blocks_gradient(*parts, self.chunk, self.window)


def ring_attention(query, key, value, segment_ids, *, mesh: Mesh, specs: tuple, axis: str, pieces):
    """Causal self-attention of sequences that are cut over devices in zigzag order.

    Args:
        query: `[B, T, H, D]`, tokens in the order of `zigzag`, like all others.
        key: `[B, T, K, D]`.
        value: `[B, T, K, D]`.
        segment_ids: int32 `[B, T]`; a query sees only keys of its own id.
        mesh: devices.
        specs: `PartitionSpec` of query, of key and value, and of `segment_ids`, in all of which `axis` cuts T.
        axis: mesh axis of the ring.
        pieces: what computes products of pieces, hashable: `BlockPieces` or one like it.

    Returns:
        `[B, T, H, D]` in the dtype of `query`.
    """
    local = partial(_local, devices=mesh.shape[axis], axis=axis, pieces=pieces)
    q_spec, kv_spec, segment_spec = specs
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(q_spec, kv_spec, kv_spec, segment_spec),
        out_specs=q_spec,
        # Not checked: a custom gradient hides which values vary over which axes.
        check_vma=False,
    )(query, key, value, segment_ids)


def _local(query, key, value, segment_ids, *, devices, axis, pieces):
    """What one device does, in whose hands are its two pieces of every sequence."""
    b, t = segment_ids.shape

    def halves(x):
        return jnp.moveaxis(x.reshape(*x.shape[:-2], 2, t // 2, x.shape[-1]), -3, 0)

    query, key, value = by_head(query, key.shape[2]), key.swapaxes(1, 2), value.swapaxes(1, 2)
    query, key, value = halves(query), halves(key), halves(value)
    segments = segment_ids.reshape(b, 2, t // 2).swapaxes(0, 1)
    out = _ring(query, key, value, segments, devices, axis, pieces)
    return heads_last(jnp.concatenate(tuple(out), axis=-2))


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _ring(query, key, value, segments, devices, axis, pieces):
    """Of scaled queries `[2, B, K, G, C, D]`, keys and values `[2, B, K, C, D]`, segments `[2, B, C]`: as queries."""
    return _ring_forward(query, key, value, segments, devices, axis, pieces)[0]


def _ring_forward(query, key, value, segments, devices, axis, pieces):
    # Masks depend on documents and places only, not on a layer: under a differentiated scan over layers, JAX would form
    # all of them in front of it, T^2 / n bytes and more. Tied to the queries, they are formed where they are used.
    query, segments, me = jax.lax.optimization_barrier((query, segments, jax.lax.axis_index(axis)))

    def step(number, held, state):
        source = (me - number) % devices
        for q, k, causal in _products(number, me, source):
            seen = _tokens(segments, q, me, devices), _tokens(held[2], k, source, devices)
            part = pieces.attend(query[q], held[0][k], held[1][k], *seen, causal)
            state = _merge(state, q, part)
        return state

    def move(number, carry):
        held, state = carry
        # Independent of the step, so that sending and computing may overlap.
        return _pass_on(held, devices, axis), step(number, held, state)

    shape = query.shape
    state = jnp.zeros(shape, jnp.float32), jnp.full(shape[:-1], MASKED, jnp.float32)
    held = (key, value, segments)
    carry = _pass_on(held, devices, axis), step(0, held, state)
    _, (out, log_sum) = jax.lax.fori_loop(1, devices, move, carry)
    out, log_sum = (checkpoint_name(x, ATTENTION) for x in (out.astype(query.dtype), log_sum))
    return out, (query, key, value, segments, out, log_sum)


def _ring_backward(devices, axis, pieces, residuals, d_out):
    query, key, value, segments, out, log_sum = residuals
    me = jax.lax.axis_index(axis)

    def step(number, held, grads, d_query):
        source = (me - number) % devices
        d_key, d_value = grads
        for q, k, causal in _products(number, me, source):
            seen = _tokens(segments, q, me, devices), _tokens(held[2], k, source, devices)
            parts = query[q], held[0][k], held[1][k], *seen, log_sum[q], out[q], d_out[q]
            dq, dk, dv = pieces.gradient(*parts, causal)
            d_query, d_key, d_value = d_query.at[q].add(dq), d_key.at[k].add(dk), d_value.at[k].add(dv)
        return (d_key, d_value), d_query

    def move(number, carry):
        held, grads, d_query = carry
        grads, d_query = step(number, held, grads, d_query)
        return _pass_on(held, devices, axis), _pass_on(grads, devices, axis), d_query

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (key, value))
    held = (key, value, segments)
    grads, d_query = step(0, held, zeros, jnp.zeros(query.shape, jnp.float32))
    # Gradients go around with the keys and values that they belong to, and are home after as many steps as devices.
    carry = _pass_on(held, devices, axis), _pass_on(grads, devices, axis), d_query
    _, (d_key, d_value), d_query = jax.lax.fori_loop(1, devices, move, carry)
    return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype), None


_ring.defvjp(_ring_forward, _ring_backward)


def _products(number, me, source):
    """Which pieces of queries meet which of the keys held in a step, and whether the two are one piece.

    The number of products is everybody's.
    """
    if isinstance(number, int):  # the first step: one's own keys
        return (0, 0, True), (1, 0, False), (1, 1, True)
    # The first pieces of earlier devices come before both of ours, both pieces of later ones before our second.
    earlier = jnp.where(source < me, 0, 1)
    return (1, 0, False), (earlier, earlier, False)


def _tokens(segments, piece, device, devices):
    """The tokens of one of the pieces that a device holds, `segments [2, B, C]`."""
    size = segments.shape[-1]
    start = jnp.where(piece == 0, device, 2 * devices - 1 - device) * size
    return Tokens(start + jnp.arange(size), segments[piece])


def _merge(state, piece, part):
    """Two softmaxes over different keys as one over all of them."""
    out, log_sum = state
    total = jnp.logaddexp(log_sum[piece], part[1])
    mixed = out[piece] * jnp.exp(log_sum[piece] - total)[..., None] + part[0] * jnp.exp(part[1] - total)[..., None]
    return out.at[piece].set(mixed), log_sum.at[piece].set(total)


def _pass_on(tree, devices, axis):
    ring = [(device, (device + 1) % devices) for device in range(devices)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, ring), tree)
