"""Names and colours of the methods, the same in every table and figure."""

from __future__ import annotations

# The palette of Okabe and Ito, which colour-blind readers can tell apart, for the methods compared most often.
STYLES = {
    "own": ("as its config says", "#222222"),
    "extrapolation": ("extrapolation", "#777777"),
    "pi": ("PI", "#E69F00"),
    "ntk": ("NTK", "#009E73"),
    "dynamic_ntk": ("dynamic NTK", "#66C2A5"),
    "yarn": ("YaRN", "#0072B2"),
    "yarn_paper": ("YaRN (paper's form)", "#7FA7D8"),
    "yarn_wavelength": ("YaRN (wavelengths)", "#4B3F99"),
    "yarn_resonance": ("Resonance YaRN", "#A6761D"),
    "llama3": ("LLaMA-3.1", "#B8A200"),
    "abf": ("base change", "#8C564B"),
    "critical_base": ("critical base", "#C49C94"),
    "p_rope": ("p-RoPE", "#BCBD22"),
    "dprope_argmin": ("DPRoPE (argmin)", "#CC79A7"),
    "dprope": ("DPRoPE", "#D55E00"),
    "dprope_robust": ("DPRoPE (robust)", "#882255"),
    "minimal": ("minimal disturbance", "#000000"),
    "explicit": ("explicit", "#56B4E9"),
    "learned": ("learned", "#E7298A"),
}
NAMES = {method: name for method, (name, _) in STYLES.items()}
COLOURS = {method: colour for method, (_, colour) in STYLES.items()}
