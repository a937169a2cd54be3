"""Ring attention (arXiv 2310.01889): the sequence is cut over devices, keys and values go around.

Every device keeps its queries and, in as many steps as there are devices, sees everybody's keys and values; partial
softmaxes are merged by their log-sum-exp, so that the result is that of one device, exactly but for rounding. Under a
causal mask a plain cut leaves the first devices idle. In the zigzag order (arXiv 2311.09431; Llama 3, 2407.21783) the
sequence is cut into twice as many pieces as there are devices and device i holds pieces i and 2n-1-i: then every
device has the same work in every step, two products of pieces, none of them masked away whole.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from rope_jax.errors import InputError
from rope_jax.model.arrays import GroupedKey, GroupedQuery, Key, Query, Segments
from rope_jax.model.attention import by_head, heads_last
from rope_jax.model.flash import MASKED, Mask, Softmax, Tokens, attend_blocks, attend_blocks_gradient
from rope_jax.model.remat import ATTENTION


def zigzag(length: int, devices: int) -> np.ndarray:
    """The order in which T tokens are laid out, so that an even cut gives device i of n pieces i and 2n-1-i.

    Returns:
        int32 `[T]`: the token at each place; `numpy.argsort` of it is the way back.
    """
    if length % (2 * devices):
        raise InputError(
            f"`length` is {length}, and {devices} `devices` cut sequences into {2 * devices} equal pieces: make it a "
            f"multiple of {2 * devices}"
        )
    pieces = np.arange(length, dtype=np.int32).reshape(2 * devices, -1)
    return np.concatenate([pieces[[i, 2 * devices - 1 - i]].reshape(-1) for i in range(devices)])


@dataclasses.dataclass(frozen=True)
class Ring:
    """A ring of devices, and how each computes its products of pieces."""

    mesh: Mesh
    axis: str  # of the mesh, along the ring
    specs: tuple[PartitionSpec, PartitionSpec, PartitionSpec]  # query, key and value, segment ids: `axis` cuts T in all
    chunk: int  # queries and keys at a time of products in plain JAX
    window: int | None = None  # places that a query sees, its own included; None is all before it
    kernel: Callable | None = None  # computes `attend` instead, such as `rope_jax.model.kernels.splash_piece`

    @property
    def size(self) -> int:
        return self.mesh.shape[self.axis]

    def attend(self, query: GroupedQuery, key: GroupedKey, value: GroupedKey, mask: Mask, causal: bool):
        """Attention of one piece of queries to one piece of keys: outputs, and the log of each softmax's sum.

        The two pieces are one where it is `causal`; otherwise all keys come before all queries.
        """
        if self.kernel:
            return self.kernel(query, key, value, mask, causal)
        return attend_blocks(query, key, value, mask, chunk=self.chunk)

    def pass_on(self, tree):
        """Each device's arrays to the next."""
        ring = [(device, (device + 1) % self.size) for device in range(self.size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axis, ring), tree)

    def mask(self, queries, keys) -> Mask:
        """Of two pieces, each given as the segments of both pieces of a device, which of them, and the device."""

        def tokens(segments, piece, device):
            size = segments.shape[-1]
            start = jnp.where(piece == 0, device, 2 * self.size - 1 - device) * size
            return Tokens(start + jnp.arange(size), segments[piece])

        return Mask(tokens(*queries), tokens(*keys), self.window)


def ring_attention(query: Query, key: Key, value: Key, segment_ids: Segments, ring: Ring) -> Query:
    """Causal self-attention of sequences that are cut over devices; all arrays are in the order of `zigzag`."""
    q_spec, kv_spec, segment_spec = ring.specs
    return jax.shard_map(
        partial(_on_device, ring=ring),
        mesh=ring.mesh,
        in_specs=(q_spec, kv_spec, kv_spec, segment_spec),
        out_specs=q_spec,
        # Not checked: a custom gradient hides which values vary over which axes.
        check_vma=False,
    )(query, key, value, segment_ids)


def _on_device(query, key, value, segment_ids, *, ring):
    """Attention of the two pieces of every sequence that a device holds."""
    b, t = segment_ids.shape

    def halves(x):
        return jnp.moveaxis(x.reshape(*x.shape[:-2], 2, t // 2, x.shape[-1]), -3, 0)

    query, key, value = by_head(query, key.shape[2]), key.swapaxes(1, 2), value.swapaxes(1, 2)
    segments = segment_ids.reshape(b, 2, t // 2).swapaxes(0, 1)
    first, second = jnp.asarray(_pieces(halves(query), halves(key), halves(value), segments, ring))
    return heads_last(jnp.concatenate((first, second), axis=-2))


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _pieces(query, key, value, segments, ring):
    """Scaled queries `[2, B, K, G, C, D]`, keys and values `[2, B, K, C, D]`, segments `[2, B, C]` to outputs."""
    return _forward(query, key, value, segments, ring)[0]


def _forward(query, key, value, segments, ring):
    # Masks depend on documents and places only, not on a layer: under a differentiated scan over layers, JAX would form
    # all of them in front of it, T^2 / n bytes and more. Tied to the queries, they are formed where they are used.
    query, segments, me = jax.lax.optimization_barrier((query, segments, jax.lax.axis_index(ring.axis)))

    def step(number, held, state):
        source = (me - number) % ring.size
        for q, k, causal in _products(number, me, source):
            mask = ring.mask((segments, q, me), (held[2], k, source))
            state = _merge(state, q, ring.attend(query[q], held[0][k], held[1][k], mask, causal))
        return state

    def move(number, carry):
        held, state = carry
        # Independent of the step, so that sending and computing may overlap.
        return ring.pass_on(held), step(number, held, state)

    state = jnp.zeros(query.shape, jnp.float32), jnp.full(query.shape[:-1], MASKED, jnp.float32)
    held = (key, value, segments)
    carry = ring.pass_on(held), step(0, held, state)
    _, (out, log_sum) = jax.lax.fori_loop(1, ring.size, move, carry)
    out, log_sum = (checkpoint_name(x, ATTENTION) for x in (out.astype(query.dtype), log_sum))
    return out, (query, key, value, segments, out, log_sum)


def _backward(ring, residuals, d_out):
    query, key, value, segments, out, log_sum = residuals
    me = jax.lax.axis_index(ring.axis)

    def step(number, held, grads, d_query):
        source = (me - number) % ring.size
        d_key, d_value = grads
        for q, k, _ in _products(number, me, source):
            mask = ring.mask((segments, q, me), (held[2], k, source))
            piece, softmax = (query[q], held[0][k], held[1][k]), Softmax(out[q], log_sum[q], d_out[q])
            dq, dk, dv = attend_blocks_gradient(*piece, mask, softmax, chunk=ring.chunk)
            d_query, d_key, d_value = d_query.at[q].add(dq), d_key.at[k].add(dk), d_value.at[k].add(dv)
        return (d_key, d_value), d_query

    def move(number, carry):
        held, grads, d_query = carry
        grads, d_query = step(number, held, grads, d_query)
        return ring.pass_on(held), ring.pass_on(grads), d_query

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (key, value))
    held = (key, value, segments)
    grads, d_query = step(0, held, zeros, jnp.zeros(query.shape, jnp.float32))
    # Gradients go around with the keys and values that they belong to, and are home after as many steps as devices.
    carry = ring.pass_on(held), ring.pass_on(grads), d_query
    _, (d_key, d_value), d_query = jax.lax.fori_loop(1, ring.size, move, carry)
    return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype), None


_pieces.defvjp(_forward, _backward)


def _products(number, me, source):
    """Which pieces of queries meet which of the keys held in a step, and whether the two are one piece.

    The number of products is the same for all devices.
    """
    if isinstance(number, int):  # the first step: one's own keys
        return (0, 0, True), (1, 0, False), (1, 1, True)
    # The first pieces of earlier devices come before both of ours, both pieces of later ones before our second.
    earlier = jnp.where(source < me, 0, 1)
    return (1, 0, False), (earlier, earlier, False)


def _merge(state, piece, part):
    """Two softmaxes over different keys as one over all of them."""
    out, log_sum = state
    total = jnp.logaddexp(log_sum[piece], part[1])
    mixed = out[piece] * jnp.exp(log_sum[piece] - total)[..., None] + part[0] * jnp.exp(part[1] - total)[..., None]
    return out.at[piece].set(mixed), log_sum.at[piece].set(total)
