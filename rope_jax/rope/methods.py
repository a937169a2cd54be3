"""From a method's name to the scale vector it gives for one model and one extension."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from rope_jax.errors import InputError
from rope_jax.rope import scaling, solve
from rope_jax.rope.disturbance import PRETRAINED_TO_EXTENDED, PSEUDO_COUNT, check_measurement, disturbance
from rope_jax.rope.embedding import ScaleVector, frequencies
from rope_jax.rope.minimise import Minimum, minimise
from rope_jax.rope.robust import RESOLUTION, check_resolution, select_by_unseen
from rope_jax.rope.turns import Turns

METHODS = (
    "extrapolation",
    "pi",
    "ntk",
    "dynamic_ntk",
    "yarn",
    "yarn_paper",
    "yarn_wavelength",
    "yarn_resonance",
    "llama3",
    "abf",
    "critical_base",
    "p_rope",
    "dprope_argmin",
    "dprope",
    "dprope_robust",
    "minimal",
    "explicit",
)
FLOAT32 = "float32"
EXACT = "exact"


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
        attention_factor: of `explicit`.
        new_base: rotary base that `abf` changes to; 0 if unused.
        turning: share of pairs that `p_rope` lets turn.
        resolution: of `dprope_robust`, radians.
        angles: arithmetic of the angles that are counted: "float32", the authors', or "exact".
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
    attention_factor: float = 1.0
    new_base: float = 0.0
    turning: float = 0.75
    resolution: float = RESOLUTION
    angles: str = FLOAT32

    @property
    def theta(self) -> np.ndarray | Turns:
        """`[D/2]`, the frequencies of the model before extension, its own scaling included: float32 or `Turns`.

        Raises:
            InputError: if the model has a scale vector per layer.
        """
        own = np.asarray(self.own.factors)
        if own.ndim == 2:
            raise InputError(
                "config.model.path: the model already has one scale vector per layer; extend the model it was made from"
            )
        if self.angles == FLOAT32:
            return frequencies(self.base, self.head_dim) / own
        exact = float(self.base) ** -(np.arange(0, self.head_dim, 2) / self.head_dim)
        return Turns.create(exact / own.astype(np.float64))

    def check(self, methods) -> None:
        """Rejects, before anything is compiled, what no method could use.

        Args:
            methods: names that will be asked for.

        Raises:
            InputError: naming the config field and the fix.
        """
        if self.angles not in (FLOAT32, EXACT):
            raise InputError(f"angles.arithmetic is {self.angles!r}: use {FLOAT32!r} or {EXACT!r}")
        longest = 2**31 - 1 if self.angles == EXACT else 2**24
        check_measurement(self.original, self.target, self.intervals, PRETRAINED_TO_EXTENDED, PSEUDO_COUNT, longest)
        check_resolution(self.resolution)
        solve.check_count(self.n_hat, self.head_dim)
        solve.check_threshold(self.threshold)
        for method in methods:
            if method not in METHODS:
                raise InputError(f"rope.method is {method!r}: use one of {', '.join(METHODS)}")
        if "explicit" in methods:
            scaling.explicit(self.factors, self.head_dim, self.layers, self.attention_factor)
        if "abf" in methods:
            scaling.base_change(self.base, self.new_base, self.head_dim)
        if "p_rope" in methods:
            scaling.partial(self.head_dim, self.turning)


@dataclasses.dataclass(frozen=True)
class Solution:
    """The outcome of a method.

    Attributes:
        scale: scale vector relative to the base's frequencies, the model's own scaling included.
        disturbance: float32 `[D/2]` of the extension, nats; over layers their mean.
        interpolated_dimensions: dimensions whose factor is not 1 relative to the model's own frequencies.
        selection: details of a per-pair selection, None for other methods.
        minimum: details of the continuous search, None for other methods.
    """

    scale: ScaleVector
    disturbance: jax.Array
    interpolated_dimensions: int
    selection: solve.Selection | None
    minimum: Minimum | None


def solve_method(method: str, extension: Extension) -> Solution:
    """Finds a method's scale vector and measures its disturbance.

    Args:
        method: one of `METHODS`. `dprope` is the paper's selection between extrapolation and interpolation,
            by `n_hat` or the threshold; `dprope_argmin` the same with threshold 0, and `dprope_robust` by what
            the model has not seen. `minimal` searches a continuous range.
        extension: see `Extension`.

    Returns:
        The solution.

    Raises:
        InputError: naming the config field that cannot be used.
    """
    e = extension
    e.check((method,))
    # The model turns, and was trained, at its own frequencies; factors below are relative to those.
    theta = e.theta
    radians = np.asarray(theta.radians if isinstance(theta, Turns) else theta)
    s = e.target / e.original
    selection = minimum = None
    match method:
        case "extrapolation":
            vector = scaling.extrapolation(e.head_dim)
        case "pi":
            vector = scaling.position_interpolation(e.head_dim, s)
        case "ntk":
            vector = scaling.ntk(e.head_dim, s)
        case "yarn":
            vector = scaling.yarn(e.base, e.head_dim, s, e.original)
        case "dynamic_ntk":
            vector = scaling.dynamic_ntk(e.head_dim, s, e.target, e.original)
        case "yarn_paper":
            vector = scaling.yarn_paper(radians, s, e.original)
        case "yarn_wavelength":
            vector = scaling.yarn_wavelength(e.base, e.head_dim, s, e.original)
        case "yarn_resonance":
            vector = scaling.resonance(radians, scaling.yarn(e.base, e.head_dim, s, e.original))
        case "llama3":
            vector = scaling.llama3(radians, s, e.original)
        case "abf":
            vector = scaling.base_change(e.base, e.new_base, e.head_dim)
        case "critical_base":
            new_base = scaling.critical_base(e.base, e.original, e.target)
            vector = scaling.base_change(e.base, new_base, e.head_dim)
        case "p_rope":
            vector = scaling.partial(e.head_dim, e.turning)
        case "explicit":
            vector = scaling.explicit(e.factors, e.head_dim, e.layers, e.attention_factor)
        case "dprope" | "dprope_argmin" | "dprope_robust":
            candidates = np.stack(
                [
                    scaling.extrapolation(e.head_dim).factors,
                    scaling.position_interpolation(e.head_dim, s).factors,
                ]
            )
            measure = (theta, candidates, e.original, e.target, e.intervals)
            if method == "dprope_robust":
                selection = select_by_unseen(*measure, e.resolution)
            elif method == "dprope" and e.n_hat:
                selection = solve.select_by_count(*measure, e.n_hat)
            else:
                selection = solve.select_by_threshold(*measure, e.threshold if method == "dprope" else 0.0)
            vector = selection.scale_vector
        case "minimal":
            minimum = minimise(theta, e.original, e.target, e.intervals)
            vector = minimum.scale_vector
    rows = np.atleast_2d(vector.factors)
    measured = np.mean([disturbance(theta, row, e.original, e.target, e.intervals) for row in rows], axis=0)
    return Solution(
        scale=scaling.compose(e.own, vector),
        disturbance=measured,
        interpolated_dimensions=2 * int(np.any(rows != 1, axis=0).sum()),
        selection=selection,
        minimum=minimum,
    )
