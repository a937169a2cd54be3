"""From a method's name to the scale vector it gives for one model and one extension."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from rope_jax.errors import InputError
from rope_jax.rope import scaling, solve
from rope_jax.rope.disturbance import PRETRAINED_TO_EXTENDED, PSEUDO_COUNT, check_measurement, disturbance
from rope_jax.rope.embedding import ScaleVector, frequencies

METHODS = ("extrapolation", "pi", "ntk", "yarn", "dprope", "dprope_argmin", "explicit")


@dataclasses.dataclass(frozen=True)
class Extension:
    """What is extended, and what the disturbance is measured with.

    Attributes:
        base: rotary base of the model.
        head_dim: head dimension D.
        own: the scaling that the model's config already carries; the extension is relative to it.
        original: pre-training context L, tokens.
        target: extended context L', tokens.
        intervals: number b of angle intervals.
        n_hat: dimensions that `dprope` interpolates; 0 chooses by `threshold`.
        threshold: t of `dprope` if `n_hat` is 0, nats.
        layers: layers of the model.
        factors: factors of `explicit`, `[D/2]` or `[layers, D/2]`; empty if unused.
    """

    base: float
    head_dim: int
    own: ScaleVector
    original: int
    target: int
    intervals: int = 360
    n_hat: int = 0
    threshold: float = 0.0
    layers: int | None = None
    factors: tuple = ()

    def check(self, methods) -> None:
        """Rejects, before anything is compiled, what no method could use.

        Args:
            methods: names that will be asked for.

        Raises:
            InputError: naming the config field and the fix.
        """
        check_measurement(self.original, self.target, self.intervals, PRETRAINED_TO_EXTENDED, PSEUDO_COUNT)
        solve.check_count(self.n_hat, self.head_dim)
        solve.check_threshold(self.threshold)
        for method in methods:
            if method not in METHODS:
                raise InputError(f"rope.method is {method!r}: use one of {', '.join(METHODS)}")
        if "explicit" in methods:
            scaling.explicit(self.factors, self.head_dim, self.layers)


@dataclasses.dataclass(frozen=True)
class Solution:
    """The outcome of a method.

    Attributes:
        scale: scale vector relative to the base's frequencies, the model's own scaling included.
        disturbance: float32 `[D/2]` of the extension, nats; over layers their mean.
        interpolated_dimensions: dimensions whose factor is not 1 relative to the model's own frequencies.
        selection: details of a per-pair selection, None for closed forms.
    """

    scale: ScaleVector
    disturbance: jax.Array
    interpolated_dimensions: int
    selection: solve.Selection | None


def solve_method(method: str, extension: Extension) -> Solution:
    """Finds a method's scale vector and measures its disturbance.

    Args:
        method: one of `METHODS`. `dprope` is the paper's selection between extrapolation and interpolation,
            by `n_hat` or the threshold; `dprope_argmin` the same with threshold 0.
        extension: see `Extension`.

    Returns:
        The solution.

    Raises:
        InputError: naming the config field that cannot be used.
    """
    e = extension
    e.check((method,))
    # The model turns, and was trained, at its own frequencies; factors below are relative to those.
    theta = frequencies(e.base, e.head_dim) / np.asarray(e.own.factors)
    if theta.ndim == 2:
        raise InputError(
            "config.model.path: the model already has one scale vector per layer; extend the model it was made from"
        )
    s = e.target / e.original
    selection = None
    match method:
        case "extrapolation":
            vector = scaling.extrapolation(e.head_dim)
        case "pi":
            vector = scaling.position_interpolation(e.head_dim, s)
        case "ntk":
            vector = scaling.ntk(e.head_dim, s)
        case "yarn":
            vector = scaling.yarn(e.base, e.head_dim, s, e.original)
        case "explicit":
            vector = scaling.explicit(e.factors, e.head_dim, e.layers)
        case "dprope" | "dprope_argmin":
            candidates = np.stack(
                [
                    scaling.extrapolation(e.head_dim).factors,
                    scaling.position_interpolation(e.head_dim, s).factors,
                ]
            )
            measure = (theta, candidates, e.original, e.target, e.intervals)
            selection = (
                solve.select_by_count(*measure, e.n_hat)
                if method == "dprope" and e.n_hat
                else solve.select_by_threshold(*measure, e.threshold if method == "dprope" else 0.0)
            )
            vector = selection.scale_vector
    rows = np.atleast_2d(vector.factors)
    measured = np.mean([disturbance(theta, row, e.original, e.target, e.intervals) for row in rows], axis=0)
    return Solution(
        scale=scaling.compose(e.own, vector),
        disturbance=measured,
        interpolated_dimensions=2 * int(np.any(rows != 1, axis=0).sum()),
        selection=selection,
    )
