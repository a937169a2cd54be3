"""Next-token cross entropy that holds the logits of one chunk of tokens at a time.

Shapes: B rows, T tokens, E hidden size, V vocabulary, sharded over the mesh. Chunks split T and keep B whole. The
kernel is the head transposed, `[V, E]`, so that a range of the logits' columns is contiguous in its memory.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rope_jax.sharding import spec

# Columns of a chunk's logits whose gradient is formed at a time.
COLUMNS = 4096


def cross_entropy(hidden, head, targets, weights, chunk: int, *, mesh: Mesh | None = None):
    """Weighted sum of next-token negative log likelihoods; divide by the second value for their mean.

    When differentiated, one pass over the chunks forms both loss and gradients, because logits are expensive to
    recompute and more expensive to keep: three matrix products in all. On a mesh, every device takes its own tokens and
    its shard of the vocabulary, and the head's gradient is summed over devices once, after all chunks.

    Args:
        hidden: `[B, T, E]`, any float dtype, which the matrix products use too.
        head: `[E, V]`.
        targets: int32 `[B, T]`, within the vocabulary even where the weight is zero.
        weights: float32 `[B, T]`.
        chunk: tokens of a row that each device takes at a time; need not divide T (static).
        mesh: mesh that tokens and vocabulary are sharded over; None for one device (static).

    Returns:
        Pair of float32 scalars: sum of weighted NLL in nats, sum of weights.
    """
    return _cross_entropy(hidden, head, targets, weights, (chunk, mesh))


def token_nll(hidden, head, targets, chunk, wanted=None):
    """Negative log likelihood of every target, float32 `[B, T]`, nats; arguments as of `cross_entropy`.

    Targets that are not `wanted`, bool `[B, T]`, get zero, and a chunk without a wanted one costs nothing.
    """
    if wanted is None:
        wanted = jnp.ones(targets.shape, bool)
    return _device_nll(hidden, _kernel(head, hidden), targets, wanted, chunk=chunk, mesh=None)


def next_token_targets(tokens, segment_ids):
    """The token that each token of a packed row predicts; documents are numbered, 0 is padding.

    Returns:
        Targets int32 `[B, T]`, the tokens shifted left, and weights float32 `[B, T]`: 1 where the next token
        exists and belongs to the same document, else 0.
    """
    after = ((0, 0), (0, 1))
    targets = jnp.pad(tokens[:, 1:], after)
    same = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] != 0)
    return targets, jnp.pad(same, after).astype(jnp.float32)


# How values for each token, hidden states, and the kernel are sharded.
TOKENS, STATES, KERNEL = spec("batch", "length"), spec("batch", "length", None), spec("vocab", "embed")


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cross_entropy(hidden, head, targets, weights, layout: tuple[int, Mesh | None]):
    device = _on_each(layout, _device_nll, TOKENS)
    return jnp.sum(device(hidden, _kernel(head, hidden), targets, weights != 0) * weights), jnp.sum(weights)


def _cross_entropy_forward(hidden, head, targets, weights, layout):
    device = _on_each(layout, _device_gradient, (TOKENS, STATES, KERNEL))
    nll, d_hidden, d_kernel = device(hidden, _kernel(head, hidden), targets, weights)
    # Residuals cannot hold a dtype: an empty array carries that of `head`.
    residuals = (d_hidden, d_kernel.T, nll, jnp.zeros((0,), head.dtype))
    return (jnp.sum(nll * weights), jnp.sum(weights)), residuals


def _cross_entropy_backward(layout, residuals, cotangents):
    d_hidden, d_head, nll, like_head = residuals
    of_sum, of_weights = cotangents
    return (
        (d_hidden.astype(jnp.float32) * of_sum).astype(d_hidden.dtype),
        (d_head * of_sum).astype(like_head.dtype),
        None,
        nll * of_sum + of_weights,
    )


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def _on_each(layout, function, outs):
    """Maps a function over each device's shard of states, kernel (whole along E), targets and weights."""
    chunk, mesh = layout
    if mesh is None or mesh.size == 1:
        return partial(function, chunk=chunk, mesh=None)
    return jax.shard_map(
        partial(function, chunk=chunk, mesh=mesh),
        mesh=mesh,
        in_specs=(STATES, spec("vocab", None), TOKENS, TOKENS),
        out_specs=outs,
        # Unchecked: the check needs to know which axes each scan's initial carry varies over.
        check_vma=False,
    )


def _device_nll(hidden, kernel, targets, wanted, *, chunk, mesh):
    """NLL of the wanted tokens, float32 `[B, T]`."""

    def step(_, inputs):
        h, t, w = inputs
        nll = jax.lax.cond(
            jnp.any(w),
            lambda: _nll(_logits(h, kernel), _own(t, kernel, mesh), mesh)[0],
            lambda: jnp.zeros(t.shape, jnp.float32),
        )
        return None, jnp.where(w, nll, 0.0)

    _, nll = jax.lax.scan(step, None, tuple(_split(x, chunk) for x in (hidden, targets, wanted)))
    return _join(nll, targets.shape[1])


def _device_gradient(hidden, kernel, targets, weights, *, chunk, mesh):
    """NLL `[B, T]` of all tokens, and the gradients of their weighted sum in states and kernel."""
    width = _slice(kernel.shape[0])

    def step(d_kernel, inputs):
        h, t, w = inputs
        b, size, e = h.shape
        h, t, w = h.reshape(-1, e), _own(t, kernel, mesh).reshape(-1), w.reshape(-1)
        logits = _logits(h, kernel)
        nll, log_total = _nll(logits, t, mesh)

        def columns(number, grads):
            d_h, d_kernel = grads
            start = number * width
            part = jax.lax.dynamic_slice_in_dim(logits, start, width, axis=1)
            hit = (start + jnp.arange(width) == t[:, None]).astype(jnp.float32)
            # Rounded to the dtype of the products, as autodiff of the product would.
            d_part = ((jnp.exp(part - log_total[:, None]) - hit) * w[:, None]).astype(h.dtype)
            rows = jax.lax.dynamic_slice_in_dim(kernel, start, width)
            d_h += jnp.einsum("nv,ve->ne", d_part, rows, preferred_element_type=jnp.float32)
            d_rows = jax.lax.dynamic_slice_in_dim(d_kernel, start, width)
            d_rows += jnp.einsum("nv,ne->ve", d_part, h, preferred_element_type=jnp.float32)
            return d_h, jax.lax.dynamic_update_slice_in_dim(d_kernel, d_rows, start, axis=0)

        grads = jnp.zeros(h.shape, jnp.float32), d_kernel
        d_h, d_kernel = jax.lax.fori_loop(0, kernel.shape[0] // width, columns, grads)
        d_h = _sum(d_h, "vocab", mesh).astype(h.dtype)
        return d_kernel, (nll.reshape(b, size), d_h.reshape(b, size, e))

    d_kernel, (nll, d_hidden) = jax.lax.scan(
        step, jnp.zeros(kernel.shape, jnp.float32), tuple(_split(x, chunk) for x in (hidden, targets, weights))
    )
    if mesh is not None:
        (embed,), (rows, length) = spec("embed"), TOKENS
        d_kernel = jax.lax.psum_scatter(d_kernel, embed, scatter_dimension=1, tiled=True)
        d_kernel = jax.lax.psum(d_kernel, tuple(axis for axis in (*rows, length) if axis != embed))
    nll, d_hidden = (_join(x, targets.shape[1]) for x in (nll, d_hidden))
    return nll, d_hidden, d_kernel


def _kernel(head, hidden):
    return head.T.astype(hidden.dtype)


def _logits(hidden, kernel):
    return jnp.einsum("...e,ve->...v", hidden, kernel, preferred_element_type=jnp.float32)


def _nll(logits, targets, mesh):
    """NLL and log of the partition sum, float32, shaped like the targets that `_own` returns."""
    highest = jnp.max(logits, axis=-1)
    if mesh is not None:
        highest = jax.lax.pmax(highest, spec("vocab")[0])
    log_total = highest + jnp.log(_sum(jnp.sum(jnp.exp(logits - highest[..., None]), axis=-1), "vocab", mesh))
    own = (targets >= 0) & (targets < logits.shape[-1])
    found = jnp.take_along_axis(logits, jnp.where(own, targets, 0)[..., None], axis=-1)[..., 0]
    return log_total - _sum(jnp.where(own, found, 0.0), "vocab", mesh), log_total


def _own(targets, kernel, mesh):
    """Targets relative to the first token of this device's shard of the vocabulary."""
    return targets if mesh is None else targets - jax.lax.axis_index(spec("vocab")[0]) * kernel.shape[0]


def _sum(x, axis, mesh):
    """Sum over the mesh axis of a logical axis."""
    return x if mesh is None else jax.lax.psum(x, spec(axis)[0])


def _slice(columns: int) -> int:
    """The largest divisor of at most `COLUMNS`; all columns where that is small, as for a prime number."""
    width = next(width for width in range(min(columns, COLUMNS), 0, -1) if columns % width == 0)
    return width if width > COLUMNS // 8 else columns


def _split(x, chunk):
    """`[B, T, ...]` -> `[chunks, B, chunk, ...]`, padded with zeros."""
    b, t = x.shape[:2]
    chunk = min(chunk, t)
    x = jnp.pad(x, ((0, 0), (0, -t % chunk)) + ((0, 0),) * (x.ndim - 2))
    return x.reshape(b, -1, chunk, *x.shape[2:]).swapaxes(0, 1)


def _join(x, length):
    """The inverse of `_split`, cut to `length` tokens."""
    x = x.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
