"""Scale vectors to compare: those of methods, random ones, and what is known of each without running a model."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32

from rope_jax.errors import InputError
from rope_jax.rope.distances import position_pairs
from rope_jax.rope.disturbance import disturbance
from rope_jax.rope.embedding import ScaleVector
from rope_jax.rope.exact.turns import exact_turns
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import EXTENDED_TO_PRETRAINED, JENSEN_SHANNON, PRETRAINED_TO_EXTENDED, Measure
from rope_jax.rope.methods import METHODS
from rope_jax.rope.methods.adjusted import Adjusted, check_parameters, parse_adjusted
from rope_jax.rope.methods.method import Method
from rope_jax.rope.methods.registered import REGISTERED, named
from rope_jax.rope.two_term import changed_distances, unseen_angles
from rope_jax.rope.unseen import unseen_mass
from rope_jax.rope.wasserstein import wasserstein

# Kinds of random vectors.
KINDS = ("ramp", "mask", "power", "free")
# The disturbance in both directions, and symmetric.
DISTURBANCES: Mapping[str, str] = {
    "disturbance": PRETRAINED_TO_EXTENDED,
    "disturbance as printed": EXTENDED_TO_PRETRAINED,
    "Jensen-Shannon": JENSEN_SHANNON,
}
# Of `unseen_mass`, radians.
RESOLUTION = 0.07


def solved(name: str, geometry: Geometry, measure: Measure, share: float) -> ScaleVector:
    """The scale vector of a name.

    Args:
        name: of a method; 'METHOD_bN' with N intervals; 'dprope_nN' with N interpolated dimensions; 'two_term_wN' with
            N as the weight of unseen angles; 'METHOD_tN' tapered over N pairs; 'NAME@FACTOR' with another attention
            factor.
        geometry: of the model.
        measure: contexts and intervals.
        share: of the dimensions, that 'dprope' interpolates.

    Raises:
        InputError: if there is no such method.
    """
    method, measure = _method(name, geometry, measure, share)
    return method(geometry, measure).scale


def check_vector(name: str, geometry: Geometry, measure: Measure) -> None:
    """Raises what `solved` would, without compiling anything."""
    method, measure = _method(name, geometry, measure, 0.5)
    method.check(geometry, measure)


def _method(name: str, geometry: Geometry, measure: Measure, share: float) -> tuple[Method, Measure]:
    said = parse_adjusted(name)
    plain, parameters = said.method, dict(said.parameters)
    if intervals := re.fullmatch(r"(\w+)_b(\d+)", plain):
        plain, measure = intervals[1], dataclasses.replace(measure, intervals=int(intervals[2]))
    known = (*METHODS, *REGISTERED)
    if plain not in known:
        raise InputError(f"`methods` has {name!r}: use one of {', '.join(known)}, also with '@FACTOR'", field="methods")
    check_parameters(named(plain), said)
    if plain == "dprope":
        parameters.setdefault("n_hat", 2 * round(share * geometry.head_dim / 2))
    method = named(plain)(**parameters)
    if said.taper or said.attention_factor:
        method = Adjusted(method, said.attention_factor or None, said.taper)
    return method, measure


def random_vectors(count: int, pairs: int, extension: float, seed: int = 0) -> dict[str, Float32[np.ndarray, " pairs"]]:
    """Random factors from 1 to s, in equal numbers of four kinds: name to `[D/2]`.

    "ramp": `s^e`, e linear from 0 to 1 between two pairs drawn at random. "mask": every pair is 1 or s, the share of s
    being random. "power": `s^(x^p)`, x from 0 for the fastest to 1 for the slowest pair, p from 1/8 to 8. "free": `s^e`
    with e uniform for each pair.
    """
    rng = np.random.default_rng((pairs, seed))
    places = np.arange(pairs)

    def exponents(kind):
        if kind == "ramp":
            low, high = np.sort(rng.uniform(-1, pairs, 2))
            return np.clip((places - low) / max(high - low, 1e-3), 0, 1)
        if kind == "mask":
            return (rng.random(pairs) < rng.random()).astype(float)
        if kind == "power":
            return (places / (pairs - 1)) ** (2 ** rng.uniform(-3, 3))
        return rng.random(pairs)

    kinds = [KINDS[i % len(KINDS)] for i in range(count)]
    return {f"{kind} {i}": (extension ** exponents(kind)).astype(np.float32) for i, kind in enumerate(kinds)}


def per_pair_costs(geometry: Geometry, measure: Measure, scale: ScaleVector) -> dict[str, list[float]]:
    """What might tell a vector's quality without running a model, for each pair; less should be better.

    The disturbance in both directions and symmetric, nats; the circular Wasserstein distance, radians, and the share of
    unseen angles, both of which know no intervals; and the two terms of the two-term cost.
    """
    theta, factors = geometry.frequencies(), np.asarray(scale.factors)
    found = {
        name: disturbance(theta, factors, dataclasses.replace(measure, distance=distance))
        for name, distance in DISTURBANCES.items()
    }
    found["Wasserstein"] = wasserstein(theta, factors, measure.original, measure.target)
    # What was searched for can lie a little below 1.
    stretched = np.maximum(factors, 1)
    found["changed distances"] = changed_distances(theta, stretched, position_pairs(measure.original))
    found["unseen angles"] = unseen_angles(theta, stretched, measure.original, position_pairs(measure.target))
    found["unseen mass"] = unseen_mass(exact_turns(theta), factors[None], measure, RESOLUTION)[0]
    return {name: [float(f"{x:.5g}") for x in np.asarray(values, np.float64)] for name, values in found.items()}
