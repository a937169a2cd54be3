"""Exact attention block by block, and its gradient, in plain JAX (FlashAttention, arXiv 2205.14135 and 2307.08691).

Scores exist for one block of queries and one of keys at a time, in both directions: the backward pass forms them once
more from the log of each softmax's sum. Blocks that the mask removes are not visited, and those that it leaves whole
are not masked. Products are laid out so that each of them is one of plain matrices: where a large operand has to be
transposed first, a processor takes twice the time.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from rope_jax.model.arrays import GroupedKey, GroupedQuery, HostOrDevice, LogSum, Output

# Finite, so that a row with every key masked stays finite instead of turning into NaN.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)

_product = partial(jnp.einsum, preferred_element_type=jnp.float32)


class Tokens(NamedTuple):
    """Where queries or keys stand."""

    places: jax.Array  # int32 `[T]`, at least 0, in the sequence that queries and keys share
    segments: HostOrDevice  # int32 `[B, T]`, documents


@partial(jax.tree_util.register_dataclass, data_fields=("queries", "keys"), meta_fields=("window",))
@dataclasses.dataclass(frozen=True)
class Mask:
    """A causal mask: a query sees the keys of its own document at its place and before."""

    queries: Tokens
    keys: Tokens
    window: int | None = None  # places that a query sees, its own included; None is all before it


class Softmax(NamedTuple):
    """What the backward pass needs of a softmax, which may be over more keys than those at hand."""

    out: GroupedQuery
    log_sum: LogSum
    d_out: GroupedQuery  # gradient of `out`


def attend_blocks(
    query: GroupedQuery, key: GroupedKey, value: GroupedKey, mask: Mask, *, chunk: int
) -> tuple[Output, LogSum]:
    """Softmax attention under a causal mask: outputs, and the log of each softmax's sum.

    A query that sees no key gets a finite output, and a sum that is negligible beside any other. `chunk` is the number
    of queries and keys at a time, about; more keys where queries are fewer.
    """
    length, dtype = query.shape[3], value.dtype
    blocks = Blocks.of(mask, chunk)
    queries, keys = blocks.queries, blocks.keys
    query = queries.padded(query, 3)
    key, value = keys.padded(key.swapaxes(2, 3), 3), keys.padded(value, 2)
    b, k, g, _, d = query.shape
    rows = (b, k, g, queries.size)

    def of_queries(i, done):
        q = queries.take(query, i, 3).reshape(b, k, -1, d)

        def of_keys(j, state):
            out, highest, total = state
            v = keys.take(value, j, 2)

            def add(masked):
                scores = masked(_product("bkrd,bkds->bkrs", q, keys.take(key, j, 3)).reshape(*rows, -1))
                new = jnp.maximum(highest, jnp.max(scores, axis=-1, keepdims=True))
                # Masked keys in front get weights of 1, which the first key that counts scales to 0.
                weights, before = jnp.exp(scores - new), jnp.exp(highest - new)
                added = _product("bkrs,bksd->bkrd", weights.astype(dtype).reshape(b, k, q.shape[2], -1), v)
                sums = jnp.sum(weights, axis=-1, keepdims=True)
                return out * before + added.reshape(out.shape), new, total * before + sums

            return blocks.either(i, j, add)

        empty = jnp.zeros((*rows, d)), jnp.full((*rows, 1), MASKED), jnp.zeros((*rows, 1))
        out, highest, total = blocks.for_keys(i, of_keys, empty)
        total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)  # 0 where no block of keys was met
        parts = out / total, (highest + jnp.log(total))[..., 0]
        return tuple(queries.put(into, part, i, 3) for into, part in zip(done, parts))

    results = jnp.zeros(query.shape), jnp.zeros(query.shape[:4])
    out, log_sum = blocks.for_queries(of_queries, results)
    return out[:, :, :, :length], log_sum[:, :, :, :length]


def attend_blocks_gradient(
    query: GroupedQuery, key: GroupedKey, value: GroupedKey, mask: Mask, softmax: Softmax, *, chunk: int
) -> tuple[Output, GroupedKey, GroupedKey]:
    """Gradients of query, key and value of `attend_blocks`, or of a part of a softmax over more keys than these."""
    (length, size), dtype = (query.shape[3], key.shape[2]), key.dtype
    blocks = Blocks.of(mask, chunk)
    queries, keys = blocks.queries, blocks.keys
    # Outputs times their gradients, summed: what the gradients of all scores of a query have in common.
    shared = jnp.sum(softmax.d_out.astype(jnp.float32) * softmax.out.astype(jnp.float32), axis=-1)
    query, d_out = queries.padded(query, 3), queries.padded(softmax.d_out, 3)
    log_sum, shared = (queries.padded(x, 3)[..., None] for x in (softmax.log_sum, shared))
    key = keys.padded(key, 2)
    key_columns, value_columns = key.swapaxes(2, 3), keys.padded(value, 2).swapaxes(2, 3)
    b, k, g, _, d = query.shape
    rows = (b, k, g, queries.size)

    def of_queries(i, grads):
        d_query, d_key, d_value = grads
        q, d_o = (queries.take(x, i, 3).reshape(b, k, -1, d) for x in (query, d_out))
        total, common = queries.take(log_sum, i, 3), queries.take(shared, i, 3)

        def of_keys(j, state):
            d_q, d_key, d_value = state

            def add(masked):
                scores = _product("bkrd,bkds->bkrs", q, keys.take(key_columns, j, 3)).reshape(*rows, -1)
                weights = jnp.exp(masked(scores) - total)
                d_weights = _product("bkrd,bkds->bkrs", d_o, keys.take(value_columns, j, 3)).reshape(weights.shape)
                d_scores = (weights * (d_weights - common)).astype(dtype).reshape(b, k, q.shape[2], -1)
                weights = weights.astype(d_o.dtype).reshape(d_scores.shape)
                return (
                    _product("bkrs,bksd->bkrd", d_scores, keys.take(key, j, 2)),
                    _product("bkrd,bkrs->bkds", q, d_scores),
                    _product("bkrd,bkrs->bkds", d_o, weights),
                )

            of_q, of_k, of_v = blocks.either(i, j, add)
            added = (keys.put(x, keys.take(x, j, 3) + part, j, 3) for x, part in ((d_key, of_k), (d_value, of_v)))
            return d_q + of_q, *added

        d_q, d_key, d_value = blocks.for_keys(i, of_keys, (jnp.zeros(q.shape), d_key, d_value))
        return queries.put(d_query, d_q.reshape(*rows, d), i, 3), d_key, d_value

    zeros = jnp.zeros(query.shape), *(jnp.zeros(key_columns.shape) for _ in range(2))
    d_query, d_key, d_value = blocks.for_queries(of_queries, zeros)
    return d_query[:, :, :, :length], *(x.swapaxes(2, 3)[:, :, :size] for x in (d_key, d_value))


class Cut(NamedTuple):
    """An axis in `blocks` of `size` each, padded at its end."""

    blocks: int
    size: int

    def padded(self, x, axis, **how):
        return padded(x, axis, self.blocks * self.size, **how)

    def take(self, x, i, axis):
        return jax.lax.dynamic_slice_in_dim(x, i * self.size, self.size, axis)

    def put(self, x, part, i, axis):
        return jax.lax.dynamic_update_slice_in_dim(x, part, i * self.size, axis)

    def padded_tokens(self, tokens: Tokens, place: int) -> Tokens:
        places = self.padded(tokens.places, 0, constant_values=place)
        return Tokens(places, self.padded(tokens.segments, 1, mode="edge"))

    def range(self, x):
        """The least and the greatest of `[..., T]` in each block: `[..., blocks]` each."""
        cut = x.reshape(*x.shape[:-1], self.blocks, self.size)
        return jnp.min(cut, axis=-1), jnp.max(cut, axis=-1)


def block_sizes(queries: int, keys: int, chunk: int) -> tuple[Cut, Cut]:
    """How so many queries and keys are cut into blocks of about `chunk`; more keys where queries are fewer.

    With a chunk of 512, a product is large enough for XLA to spread it over the cores of a processor.
    """
    of_queries = _even(queries, chunk)
    return of_queries, _even(keys, chunk * max(1, chunk // of_queries.size))


class Blocks(NamedTuple):
    """How queries and keys are cut, and which blocks of the two meet.

    Attributes:
        queries: n blocks.
        keys: m blocks.
        mask: padded. Padding queries come before everything and see nothing; padding keys come after everything and
            are not seen.
        first: int32 `[n]`, the first block of keys that each block of queries meets.
        end: int32 `[n]`, one more than the last.
        whole: bool `[n, m]`, where every query sees every key.
    """

    queries: Cut
    keys: Cut
    mask: Mask
    first: jax.Array
    end: jax.Array
    whole: jax.Array

    @classmethod
    def of(cls, mask: Mask, chunk: int) -> Blocks:
        """Cuts the queries and keys of a mask into blocks of about `chunk`."""
        of_queries, of_keys = block_sizes(mask.queries.places.shape[0], mask.keys.places.shape[0], chunk)
        queries = of_queries.padded_tokens(mask.queries, -1)
        keys = of_keys.padded_tokens(mask.keys, jnp.iinfo(jnp.int32).max)

        (q_low, q_high), (q_least, q_most) = map(of_queries.range, queries)
        (k_low, k_high), (k_least, k_most) = map(of_keys.range, keys)
        meet = (k_low <= q_high[:, None]) & jnp.any(
            (k_least[:, None] <= q_most[..., None]) & (k_most[:, None] >= q_least[..., None]), axis=0
        )
        one = (q_least == q_most)[..., None] & (q_least[..., None] == k_least[:, None])
        whole = (k_high <= q_low[:, None]) & jnp.all(one & (k_least == k_most)[:, None], axis=0)
        if mask.window is not None:
            meet &= k_high > q_low[:, None] - mask.window
            whole &= k_low > q_high[:, None] - mask.window
        end = jnp.where(jnp.any(meet, axis=1), of_keys.blocks - jnp.argmax(meet[:, ::-1], axis=1), 0)
        return cls(of_queries, of_keys, Mask(queries, keys, mask.window), jnp.argmax(meet, axis=1), end, whole)

    def for_queries(self, body, state):
        """`body(i, state)` for all blocks of queries."""
        blocks = self.queries.blocks
        return body(0, state) if blocks == 1 else jax.lax.fori_loop(0, blocks, body, state)

    def for_keys(self, i, body, state):
        """`body(j, state)` for all blocks of keys that block `i` of queries meets; a single one is always visited."""
        if self.keys.blocks == 1:
            return body(0, state)
        return jax.lax.fori_loop(self.first[i], self.end[i], body, state)

    def either(self, i, j, compute):
        """`compute(masked)` of one pair of blocks, where `masked` is of scores `[B, K, G, C, C']`."""
        q, k, window = self.mask.queries, self.mask.keys, self.mask.window

        def masked(scores):
            rows, columns = self.queries.take(q.places, i, 0)[:, None], self.keys.take(k.places, j, 0)
            seen = columns <= rows
            if window is not None:
                seen &= columns > rows - window
            seen &= self.queries.take(q.segments, i, 1)[:, :, None] == self.keys.take(k.segments, j, 1)[:, None]
            return jnp.where(seen[:, None, None], scores, MASKED)

        if self.keys.blocks == 1:
            return compute(masked)
        return jax.lax.cond(self.whole[i, j], lambda: compute(lambda scores: scores), lambda: compute(masked))


def _even(size: int, chunk: int) -> Cut:
    """Blocks of about `chunk`, as even as can be."""
    count = max(1, -(-size // chunk))
    # A few more or less than are needed, if they come out even: padding copies the whole array.
    near = [n for n in range(max(1, count * 4 // 5), count * 2) if size % n == 0 and size // n <= chunk * 5 // 4]
    # A CPU's products are fastest on multiples of 64 columns: 208 of them take longer than 256.
    near = [n for n in near if size // n % 64 == 0] or [n for n in near if n <= count + count // 4]
    count = min(near, key=lambda n: abs(n - count), default=count)
    return Cut(count, -(-size // count))


def padded(x: Shaped[HostOrDevice, "*old"], axis: int, size: int, **how) -> Shaped[Array, "*new"]:
    """The array with `axis` padded at its end to `size`; `how` is of `jax.numpy.pad`, default zeros."""
    return jnp.pad(x, [(0, size - length if a == axis else 0) for a, length in enumerate(x.shape)], **how)
