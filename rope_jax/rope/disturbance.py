"""The disturbance: how far an extension moves the rotary angle distribution (arXiv 2410.01490, Eq. 8)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from rope_jax.rope.angles import angle_counts, extended
from rope_jax.rope.arrays import AnyArray
from rope_jax.rope.exact.turns import Turns
from rope_jax.rope.measure import Measure


@jax.jit
def disturbance(
    theta: Float32[AnyArray, " pairs"] | Turns, factors: Float32[AnyArray, " pairs"], measure: Measure
) -> Float32[Array, " pairs"]:
    """Disturbance D_i of each pair: the divergence between its angles before and after extension.

    With `P_L` the histogram at `f = 1, n = L` and `P_L'` the one at the extended `f, n = L'` (arXiv 2410.01490,
    Eq. 8), summed over the b intervals. The paper reports the mean over pairs, times 1000.

    The printed equation and the published numbers disagree. `KL(P_L || P_L')`, the distance
    "pretrained_to_extended", reproduces Table 3 and converges as the pseudo-count goes to 0; it is the default.
    `KL(P_L' || P_L)`, as printed and here "extended_to_pretrained", grows without bound as the pseudo-count goes to
    0, because an extended angle can fall where no pre-training angle did: position interpolation at 8k costs 185e-3,
    213e-3 and 465e-3 at pseudo-counts 6.1e-5, 1e-5 and 1e-12. Compare its values only at one pseudo-count.

    Args:
        theta: frequencies before extension: radians per position for the authors' roundings, or `Turns` per position.
        factors: scale factors relative to `theta`.

    Returns:
        Nats.

    Example:
        >>> found = disturbance(np.float32([1, 0.001]), np.float32([1, 1]), Measure(original=4096, target=8192))
        >>> print(*(f"{nats:.3f}" for nats in found))  # the slow pair meets angles that it has never seen
        0.003 0.369
    """
    return shift(theta, extended(theta, factors), measure)


@jax.jit
def disturbances(
    theta: Float32[AnyArray, " pairs"] | Turns, candidates: Float32[AnyArray, "candidates pairs"], measure: Measure
) -> Float32[Array, "candidates pairs"]:
    """`disturbance` of every row of factors, nats."""
    return jax.vmap(lambda factors: disturbance(theta, factors, measure))(candidates)


@jax.jit
def shift(
    before: Float32[AnyArray, " pairs"] | Turns, after: Float32[AnyArray, " pairs"] | Turns, measure: Measure
) -> Float32[Array, " pairs"]:
    """Disturbance of each pair, nats, given its frequency before and after extension."""
    return jax.vmap(pair_shift, in_axes=(0, 0, None))(before, after, measure)


def pair_shift(
    before: Float32[AnyArray, ""] | Turns, after: Float32[AnyArray, ""] | Turns, measure: Measure
) -> Float32[Array, ""]:
    """Disturbance of one pair: `shift` of scalars."""
    pretrained = angle_counts(before, measure.original, measure.intervals)
    moved = angle_counts(after, measure.target, measure.intervals)
    return distance_between(pretrained, moved, measure)


def distance_between(
    pretrained: Int32[AnyArray, " intervals"], moved: Int32[AnyArray, " intervals"], measure: Measure
) -> Float32[Array, ""]:
    """The measure's distance, nats, between the histograms of a pair before and after extension."""
    if measure.distance == "jensen_shannon":
        return jensen_shannon(pretrained, moved)
    if measure.distance == "extended_to_pretrained":
        pretrained, moved = moved, pretrained
    return divergence(pretrained, moved, measure.pseudo_count)


def divergence(
    counts: Int32[AnyArray, " intervals"], reference: Int32[AnyArray, " intervals"], pseudo_count: float | Array
) -> Float32[Array, ""]:
    """Kullback-Leibler divergence `sum_k p_k ln(p_k / q_k)` of `counts` (p) from `reference` (q), nats.

    The pseudo-count is added to each count and the shares are not renormalised, as the authors do.
    """
    pseudo_count = jnp.asarray(pseudo_count, jnp.float32)
    p = (counts.astype(jnp.float32) + pseudo_count) / counts.sum().astype(jnp.float32)
    q = (reference.astype(jnp.float32) + pseudo_count) / reference.sum().astype(jnp.float32)
    return jnp.sum(p * jnp.log(p / q))


def jensen_shannon(
    counts: Int32[AnyArray, " intervals"], reference: Int32[AnyArray, " intervals"]
) -> Float32[Array, ""]:
    """Jensen-Shannon divergence, nats: the mean divergence of two histograms from their mixture (Lin, 1991).

    Bounded by ln 2 and symmetric. It needs no pseudo-count, because the mixture is empty only where both are.
    """
    p = counts.astype(jnp.float32) / counts.sum().astype(jnp.float32)
    q = reference.astype(jnp.float32) / reference.sum().astype(jnp.float32)

    def from_mixture(share):
        ratio = jnp.where(share > 0, 2 * share / jnp.where(share > 0, p + q, 1), 1)
        return jnp.sum(share * jnp.log(ratio))

    return (from_mixture(p) + from_mixture(q)) / 2
