"""The methods by name: frozen dataclasses of their own parameters.

``METHODS["dprope"](n_hat=80)(geometry, measure)`` gives a `Solution`.
"""

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
from rope_jax.rope.methods.longrope2 import LongRope2
from rope_jax.rope.methods.method import Method
from rope_jax.rope.methods.radix import MrRopePro, MrRopeUni, TailSpline
from rope_jax.rope.methods.still import Cope, HardCut, Nope, Proportional
from rope_jax.rope.methods.two_term import TwoTerm

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
    "longrope2": LongRope2,
    "mrrope_uni": MrRopeUni,
    "mrrope_pro": MrRopePro,
    "tailspline": TailSpline,
    "cope": Cope,
    "hard_cut": HardCut,
    "p_rope": PartialRope,
    "proportional": Proportional,
    "nope": Nope,
    "dprope_argmin": DPRopeArgmin,
    "dprope": DPRope,
    "dprope_robust": DPRopeRobust,
    "two_term": TwoTerm,
    "minimal": Minimal,
    "explicit": Explicit,
}
