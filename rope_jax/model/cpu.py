"""Formulations that CPUs need: each computes what the plain formula beside its call does, in less time.

Measured with XLA's compiler of JAX 0.10 on two cores of an Intel Xeon.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from rope_jax.model.arrays import HostOrDevice

# States for which `projection` by sums was faster than a matrix product; for one state it was far slower.
FEW_STATES = range(2, 33)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: Float[Array, "*in"], kernel: Float[HostOrDevice, "*weight"], axes: int) -> Float[Array, "*out"]:
    """`jax.numpy.tensordot(x, kernel, axes)`, whose kernel gradient reads the wider array as it lies.

    The kernel's gradient multiplies two long arrays, of which XLA transposes the first. Autodiff begins with the
    gradient of the outputs, which may be the wider; here the narrower comes first.
    """
    return jnp.tensordot(x, kernel, axes)


def _product_forward(x, kernel, axes):
    return product(x, kernel, axes), (x, kernel)


def _product_backward(axes, residuals, d_y):
    x, kernel = residuals
    rows = tuple(range(x.ndim - axes))
    inner, outer = tuple(range(len(rows), d_y.ndim)), tuple(range(axes, kernel.ndim))
    d_x = jnp.tensordot(d_y, kernel, axes=(inner, outer))
    if x.size <= d_y.size:
        return d_x, jnp.tensordot(x, d_y, axes=(rows, rows))
    d_kernel = jnp.tensordot(d_y, x, axes=(rows, rows))
    return d_x, jnp.moveaxis(d_kernel, range(len(outer), kernel.ndim), range(axes))


product.defvjp(_product_forward, _product_backward)


def cos_and_sin(angles: Float32[Array, "*shape"]) -> tuple[Float32[Array, "*shape"], Float32[Array, "*shape"]]:
    """`jax.numpy.cos(angles), jax.numpy.sin(angles)`, formed once for all heads.

    The compiler fuses them into the rotation and forms them anew for each head. A barrier prevents that, except on a
    CPU, whose compiler looks through barriers; what leaves a loop is in memory.
    """

    def plain(angles):
        return jax.lax.optimization_barrier((jnp.cos(angles), jnp.sin(angles)))

    def loop(angles):
        return tuple(jax.lax.map(lambda i: jax.lax.cond(i == 0, jnp.cos, jnp.sin, angles), jnp.arange(2)))

    return jax.lax.platform_dependent(angles, cpu=loop, default=plain)


def vector_products(vectors: Float[Array, "b k g m"], matrices: Float[Array, "b k m n"]) -> Float32[Array, "b k g n"]:
    """`einsum("bkgm,bkmn->bkgn")`, in float32.

    One vector by each matrix is bound by reading the matrix. As sums it is spread over the cores; a batch of small
    matrix products runs each on one.
    """
    if vectors.shape[2] == 1:
        products = vectors[:, :, 0, :, None].astype(jnp.float32) * matrices.astype(jnp.float32)
        return jnp.sum(products, axis=2)[:, :, None]
    return jnp.einsum("bkgm,bkmn->bkgn", vectors, matrices, preferred_element_type=jnp.float32)


def projection(states: Float[Array, "b e"], head: Float[HostOrDevice, "v e"]) -> Float32[Array, "b v"]:
    """`einsum("be,ve->bv")`, in float32.

    As sums, few states take 2.3 ms, and 3.0 ms as a matrix product (8 states of 288, 16,000 tokens, one core).
    """

    def sums(states, head):
        return jnp.sum(head[:, :, None] * states.T, axis=1).T

    plain = partial(jnp.einsum, "be,ve->bv", preferred_element_type=jnp.float32)
    if head.dtype != jnp.float32 or len(states) not in FEW_STATES:
        return plain(states, head)
    return jax.lax.platform_dependent(states, head, cpu=sums, default=plain)


def most_likely(
    logits: Float32[Array, "b v"], banned: Bool[HostOrDevice, " v"] | Bool[HostOrDevice, "b v"]
) -> Int32[Array, " b"]:
    """`argmax` over the tokens that are not banned; the first of equals.

    `argmax` reduces pairs, which a CPU does not vectorise; two plain reductions take a third of its time.
    """
    logits = jnp.where(banned, -jnp.inf, logits)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    ids = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    return jnp.min(jnp.where(logits == largest, ids, ids[-1]), axis=-1)
