"""Exact attention block by block, and its gradient, in plain JAX (FlashAttention, arXiv 2205.14135 and 2307.08691).

Scores exist for one block of queries and one of keys at a time, in both directions: the backward pass forms them once
more from the log of each softmax's sum. Blocks that the mask removes are not visited, and those that it leaves whole
are not masked. Products are laid out so that each of them is one of plain matrices: where a large operand has to be
transposed first, a processor takes twice the time.

Shapes: B rows, T queries, S keys, K key heads, G query heads to each of them, D head dimension; n blocks of C queries,
m blocks of C' keys.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from rope_jax.model.arrays import GroupedKey, GroupedQuery, HostOrDevice, LogSum, Output

# Finite, so that a row with every key masked stays finite instead of turning into NaN.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)

_product = partial(jnp.einsum, preferred_element_type=jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """Where queries or keys stand.

    Attributes:
        places: int32 `[T]`, at least 0, in the sequence that queries and keys share.
        segments: int32 `[B, T]`, documents.
    """

    places: jax.Array
    segments: HostOrDevice


@partial(jax.tree_util.register_dataclass, data_fields=("queries", "keys"), meta_fields=("window",))
@dataclasses.dataclass(frozen=True)
class Mask:
    """A causal mask: a query sees keys of its own document at its place and before.

    Attributes:
        queries: places and documents of the queries.
        keys: those of the keys.
        window: places that a query sees, its own included; None is all before it.
    """

    queries: Tokens
    keys: Tokens
    window: int | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cotangent:
    """What the backward pass needs of a softmax, which may be over more keys than those at hand.

    Attributes:
        d_out: `[B, K, G, T, D]`, gradient of the outputs.
        log_sum: float32 `[B, K, G, T]`, log of the softmax's sum.
        shared: float32 `[B, K, G, T]`, outputs times their gradients, summed over D, which the gradients of all
            scores have in common.
    """

    d_out: jax.Array
    log_sum: jax.Array
    shared: jax.Array

    @classmethod
    def of(cls, out: GroupedQuery, log_sum: LogSum, d_out: GroupedQuery) -> Cotangent:
        """From the outputs of the softmax, the log of its sum, and the gradient of the outputs."""
        return cls(d_out, log_sum, jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1))


def attend_blocks(
    query: GroupedQuery, key: GroupedKey, value: GroupedKey, mask: Mask, *, chunk: int
) -> tuple[Output, LogSum]:
    """Softmax attention under a causal mask.

    Args:
        query: scaled.
        key: keys.
        value: values.
        mask: who sees whom.
        chunk: queries and keys at a time, about; more keys where queries are fewer.

    Returns:
        Outputs, and the log of each softmax's sum. A query that sees no key gets a finite output, and a sum that is
        negligible beside any other.
    """
    length, dtype = query.shape[3], value.dtype
    blocks = Blocks.of(mask, chunk)
    query = blocks.padded_queries(query, 3)
    key, value = blocks.padded_keys(key.swapaxes(2, 3), 3), blocks.padded_keys(value, 2)
    b, k, g, _, d = query.shape
    rows = (b, k, g, blocks.queries_at_a_time)

    def of_queries(i, done):
        q = blocks.of_query(query, i, 3).reshape(b, k, -1, d)

        def of_keys(j, state):
            out, highest, total = state
            v = blocks.of_key(value, j, 2)

            def add(masked):
                scores = _product("bkrd,bkds->bkrs", q, blocks.of_key(key, j, 3)).reshape(*rows, -1)
                scores = masked(scores)
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
        return tuple(blocks.put_query(into, part, i) for into, part in zip(done, parts))

    results = jnp.zeros(query.shape), jnp.zeros(query.shape[:4])
    out, log_sum = blocks.for_queries(of_queries, results)
    return out[:, :, :, :length], log_sum[:, :, :, :length]


def attend_blocks_gradient(
    query: GroupedQuery, key: GroupedKey, value: GroupedKey, mask: Mask, cotangent: Cotangent, *, chunk: int
) -> tuple[Output, GroupedKey, GroupedKey]:
    """The gradient of `attend_blocks`, or of a part of a softmax over more keys than these.

    Args:
        query: scaled.
        key: keys.
        value: values.
        mask: who sees whom.
        cotangent: gradient of the outputs, and what is known of the softmax.
        chunk: queries and keys at a time, about; more keys where queries are fewer.

    Returns:
        Gradients of query, key and value.
    """
    (length, size), dtype = (query.shape[3], key.shape[2]), key.dtype
    blocks = Blocks.of(mask, chunk)
    query, d_out = (blocks.padded_queries(x, 3) for x in (query, cotangent.d_out))
    log_sum, shared = (blocks.padded_queries(x, 3)[..., None] for x in (cotangent.log_sum, cotangent.shared))
    key = blocks.padded_keys(key, 2)
    key_columns, value_columns = key.swapaxes(2, 3), blocks.padded_keys(value, 2).swapaxes(2, 3)
    b, k, g, _, d = query.shape
    rows = (b, k, g, blocks.queries_at_a_time)

    def of_queries(i, grads):
        d_query, d_key, d_value = grads
        q, d_o = (blocks.of_query(x, i, 3).reshape(b, k, -1, d) for x in (query, d_out))
        total, common = blocks.of_query(log_sum, i, 3), blocks.of_query(shared, i, 3)

        def of_keys(j, state):
            d_q, d_key, d_value = state

            def add(masked):
                scores = _product("bkrd,bkds->bkrs", q, blocks.of_key(key_columns, j, 3)).reshape(*rows, -1)
                weights = jnp.exp(masked(scores) - total)
                d_weights = _product("bkrd,bkds->bkrs", d_o, blocks.of_key(value_columns, j, 3)).reshape(weights.shape)
                d_scores = (weights * (d_weights - common)).astype(dtype).reshape(b, k, q.shape[2], -1)
                weights = weights.astype(d_o.dtype).reshape(d_scores.shape)
                return (
                    _product("bkrs,bksd->bkrd", d_scores, blocks.of_key(key, j, 2)),
                    _product("bkrd,bkrs->bkds", q, d_scores),
                    _product("bkrd,bkrs->bkds", d_o, weights),
                )

            of_q, of_k, of_v = blocks.either(i, j, add)
            return d_q + of_q, blocks.add_key(d_key, of_k, j), blocks.add_key(d_value, of_v, j)

        d_q, d_key, d_value = blocks.for_keys(i, of_keys, (jnp.zeros(q.shape), d_key, d_value))
        return blocks.put_query(d_query, d_q.reshape(*rows, d), i), d_key, d_value

    zeros = jnp.zeros(query.shape), *(jnp.zeros(key_columns.shape) for _ in range(2))
    d_query, d_key, d_value = blocks.for_queries(of_queries, zeros)
    return d_query[:, :, :, :length], *(x.swapaxes(2, 3)[:, :, :size] for x in (d_key, d_value))


def block_sizes(queries: int, keys: int, chunk: int) -> tuple[int, int, int, int]:
    """How queries and keys are cut.

    With a chunk of 512, a product is large enough for XLA to spread it over the cores of a processor.

    Args:
        queries: T.
        keys: S.
        chunk: queries and keys at a time, about; more keys where queries are fewer.

    Returns:
        n and C, m and C'.
    """
    n, rows = _even(queries, chunk)
    return n, rows, *_even(keys, chunk * max(1, chunk // rows))


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How queries and keys are cut, and which blocks of the two meet.

    Attributes:
        queries: n.
        queries_at_a_time: C.
        keys: m.
        keys_at_a_time: C'.
        mask: padded to n C queries and m C' keys. Padding queries come before everything and see nothing; padding
            keys come after everything and are not seen.
        first: int32 `[n]`, the first block of keys that each block of queries meets.
        end: int32 `[n]`, one more than the last.
        whole: bool `[n, m]`, where every query sees every key.
    """

    queries: int
    queries_at_a_time: int
    keys: int
    keys_at_a_time: int
    mask: Mask
    first: jax.Array
    end: jax.Array
    whole: jax.Array

    @classmethod
    def of(cls, mask: Mask, chunk: int) -> Blocks:
        """Cuts the queries and keys of a mask into blocks of about `chunk`."""
        n, rows, m, columns = block_sizes(mask.queries.places.shape[0], mask.keys.places.shape[0], chunk)
        queries = _padded_tokens(mask.queries, n * rows, -1)
        keys = _padded_tokens(mask.keys, m * columns, jnp.iinfo(jnp.int32).max)

        (q_low, q_high), (k_low, k_high) = _range(queries.places, n), _range(keys.places, m)
        (q_least, q_most), (k_least, k_most) = _range(queries.segments, n), _range(keys.segments, m)
        meet = (k_low <= q_high[:, None]) & jnp.any(
            (k_least[:, None] <= q_most[..., None]) & (k_most[:, None] >= q_least[..., None]), axis=0
        )
        one = (q_least == q_most)[..., None] & (q_least[..., None] == k_least[:, None])
        whole = (k_high <= q_low[:, None]) & jnp.all(one & (k_least == k_most)[:, None], axis=0)
        if mask.window is not None:
            meet &= k_high > q_low[:, None] - mask.window
            whole &= k_low > q_high[:, None] - mask.window
        end = jnp.where(jnp.any(meet, axis=1), m - jnp.argmax(meet[:, ::-1], axis=1), 0)
        padded = Mask(queries, keys, mask.window)
        return cls(n, rows, m, columns, padded, first=jnp.argmax(meet, axis=1), end=end, whole=whole)

    def padded_queries(self, x, axis):
        return padded(x, axis, self.queries * self.queries_at_a_time)

    def padded_keys(self, x, axis):
        return padded(x, axis, self.keys * self.keys_at_a_time)

    def of_query(self, x, i, axis):
        return jax.lax.dynamic_slice_in_dim(x, i * self.queries_at_a_time, self.queries_at_a_time, axis)

    def of_key(self, x, j, axis):
        return jax.lax.dynamic_slice_in_dim(x, j * self.keys_at_a_time, self.keys_at_a_time, axis)

    def put_query(self, x, part, i):
        return jax.lax.dynamic_update_slice_in_dim(x, part, i * self.queries_at_a_time, 3)

    def add_key(self, x, part, j):
        return jax.lax.dynamic_update_slice_in_dim(x, self.of_key(x, j, 3) + part, j * self.keys_at_a_time, 3)

    def for_queries(self, body, state):
        """`body(i, state)` for all blocks of queries."""
        return body(0, state) if self.queries == 1 else jax.lax.fori_loop(0, self.queries, body, state)

    def for_keys(self, i, body, state):
        """`body(j, state)` for all blocks of keys that block `i` of queries meets; a single one is always visited."""
        if self.keys == 1:
            return body(0, state)
        return jax.lax.fori_loop(self.first[i], self.end[i], body, state)

    def either(self, i, j, compute):
        """`compute(masked)` of one pair of blocks, where `masked` is of scores `[B, K, G, C, C']`."""
        q, k, window = self.mask.queries, self.mask.keys, self.mask.window

        def masked(scores):
            rows, columns = self.of_query(q.places, i, 0)[:, None], self.of_key(k.places, j, 0)
            seen = columns <= rows
            if window is not None:
                seen &= columns > rows - window
            seen &= self.of_query(q.segments, i, 1)[:, :, None] == self.of_key(k.segments, j, 1)[:, None]
            return jnp.where(seen[:, None, None], scores, MASKED)

        if self.keys == 1:
            return compute(masked)
        return jax.lax.cond(self.whole[i, j], lambda: compute(lambda scores: scores), lambda: compute(masked))


def _even(size: int, chunk: int) -> tuple[int, int]:
    """Blocks of about `chunk`, as even as can be: how many, and of how many."""
    count = max(1, -(-size // chunk))
    # A few more or less than are needed, if they come out even: padding copies the whole array.
    near = [n for n in range(max(1, count * 4 // 5), count * 2) if size % n == 0 and size // n <= chunk * 5 // 4]
    # A CPU's products are fastest on multiples of 64 columns: 208 of them take longer than 256.
    near = [n for n in near if size // n % 64 == 0] or [n for n in near if n <= count + count // 4]
    count = min(near, key=lambda n: abs(n - count), default=count)
    return count, -(-size // count)


def padded(x: Shaped[HostOrDevice, "*old"], axis: int, size: int, **how) -> Shaped[Array, "*new"]:
    """The array with `axis` padded at its end to `size`; `how` is of `jax.numpy.pad`, default zeros."""
    return jnp.pad(x, [(0, size - length if a == axis else 0) for a, length in enumerate(x.shape)], **how)


def padded_to_multiple(x: Shaped[HostOrDevice, "*old"], axis: int, multiple: int, **how) -> Shaped[Array, "*new"]:
    """The array with `axis` padded at its end to a multiple; `how` is of `jax.numpy.pad`, default zeros."""
    return padded(x, axis, -(-x.shape[axis] // multiple) * multiple, **how)


def _padded_tokens(tokens: Tokens, size: int, place: int) -> Tokens:
    return Tokens(padded(tokens.places, 0, size, constant_values=place), padded(tokens.segments, 1, size, mode="edge"))


def _range(x, count):
    """The least and the greatest of `[..., T]` in each block: `[..., count]` each."""
    blocks = x.reshape(*x.shape[:-1], count, -1)
    return jnp.min(blocks, axis=-1), jnp.max(blocks, axis=-1)
