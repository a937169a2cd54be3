"""Versions and compiled programs of a run."""

import importlib.metadata
import platform
from pathlib import Path

import jax

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions() -> dict[str, str]:
    """Versions of the software that computes the numbers, and its devices."""
    return {
        "Python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def compilation_cache(folder: Path, where: str) -> None:
    """Makes JAX keep compiled programs on disk for later commands, unless the environment names a folder already.

    Args:
        where: a folder; empty for `compiled` in the run's `folder`; 'off' for none.
    """
    chosen = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if where != "off" and not chosen:
        jax.config.update("jax_compilation_cache_dir", str(Path(where).expanduser() if where else folder / "compiled"))
