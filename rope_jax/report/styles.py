"""Names and looks of the methods, the same in every table and figure."""

from rope_jax.rope.methods import METHODS
from rope_jax.rope.methods.adjusted import parse_adjusted

NAMES = {
    "own": "as its config says",
    **{name: method.title for name, method in METHODS.items()},
    "learned": "learned",
}

# The palette of Okabe and Ito, which colour-blind readers can tell apart, for the methods compared most often.
COLOURS = {
    "own": "#222222",
    "extrapolation": "#777777",
    "pi": "#E69F00",
    "ntk": "#009E73",
    "dynamic_ntk": "#66C2A5",
    "yarn": "#0072B2",
    "yarn_paper": "#7FA7D8",
    "yarn_wavelength": "#4B3F99",
    "yarn_resonance": "#A6761D",
    "llama3": "#B8A200",
    "abf": "#8C564B",
    "critical_base": "#C49C94",
    "longrope2": "#1B4F72",
    "mrrope_uni": "#7D9D33",
    "mrrope_pro": "#2E5E0E",
    "tailspline": "#8FBC8F",
    "cope": "#C0392B",
    "hard_cut": "#E59866",
    "p_rope": "#BCBD22",
    "proportional": "#DFD880",
    "nope": "#B2BABB",
    "dprope_argmin": "#CC79A7",
    "dprope": "#D55E00",
    "dprope_robust": "#882255",
    "two_term": "#6A0DAD",
    "minimal": "#000000",
    "explicit": "#56B4E9",
    "learned": "#E7298A",
}
# Of methods that a user defines, and that have no colour yet.
_SPARE = ("#17BECF", "#9467BD", "#6B8E23", "#FF6F61")
# Parameters that a name gives a method, for readers.
_PARAMETERS = {"n_hat": "interpolated dimensions", "unseen_weight": "weight of unseen angles"}
# Lines of one method with different adjustments.
_DASHES = ("--", "-.", ":")


def titled(method: str) -> str:
    """The name of a method, such as 'yarn' or 'yarn@1.03', for readers."""
    said = parse_adjusted(method)
    parts = [
        NAMES.get(said.method, said.method),
        *(f"{_PARAMETERS[parameter]} {number}" for parameter, number in said.parameters.items()),
        f"tapered over {said.taper} pairs" if said.taper else "",
        f"attention factor {said.attention_factor}" if said.attention_factor else "",
    ]
    return ", ".join(filter(None, parts))


def look(method: str) -> dict[str, str]:
    """Colour and style of a method's line."""
    said = parse_adjusted(method)
    colour = COLOURS.get(said.method, _SPARE[_number(said.method) % len(_SPARE)])
    style = _DASHES[_number(said.adjustment) % len(_DASHES)] if said.adjustment else "-"
    return {"color": colour, "linestyle": style}


def _number(name: str) -> int:
    """The same for a name in every figure."""
    return sum(map(ord, name))
