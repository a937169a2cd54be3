"""Context-window extension of RoPE language models from a distributional perspective, in JAX."""

from importlib import import_module
from importlib.metadata import version

__version__ = version("rope-jax")
__all__ = ["Geometry", "Measure", "Model", "ScaleVector", "disturbance", "load", "method", "solve"]

_PLACES = {
    "Geometry": "rope_jax.rope.geometry",
    "Measure": "rope_jax.rope.measure",
    "ScaleVector": "rope_jax.rope.embedding",
    "method": "rope_jax.rope.methods.registered",
}


def __getattr__(name):
    """Imports a public name when it is first used: importing the package alone takes no time."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES.get(name, "rope_jax.api")), name)
