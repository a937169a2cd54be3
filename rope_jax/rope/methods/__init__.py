"""The methods by name: frozen dataclasses of their own parameters.

``METHODS["dprope"](n_hat=80)(geometry, measure)`` gives a `Solution`.
"""

from __future__ import annotations

from collections.abc import Mapping

from rope_jax.rope.methods.by_parts import Llama3, Yarn, YarnPaper, YarnResonance, YarnWavelength
from rope_jax.rope.methods.dprope import DPRope, DPRopeArgmin, DPRopeRobust, Minimal
from rope_jax.rope.methods.explicit import Explicit
from rope_jax.rope.methods.interpolation import (
    NTK,
    BaseChange,
    CriticalBase,
    DynamicNTK,
    Extrapolation,
    PartialRope,
    PositionInterpolation,
)
from rope_jax.rope.methods.method import Method

METHODS: Mapping[str, type[Method]] = {
    "extrapolation": Extrapolation,
    "pi": PositionInterpolation,
    "ntk": NTK,
    "dynamic_ntk": DynamicNTK,
    "yarn": Yarn,
    "yarn_paper": YarnPaper,
    "yarn_wavelength": YarnWavelength,
    "yarn_resonance": YarnResonance,
    "llama3": Llama3,
    "abf": BaseChange,
    "critical_base": CriticalBase,
    "p_rope": PartialRope,
    "dprope_argmin": DPRopeArgmin,
    "dprope": DPRope,
    "dprope_robust": DPRopeRobust,
    "minimal": Minimal,
    "explicit": Explicit,
}
