"""Shared fixtures. Tests see eight virtual CPU devices, so that sharded code runs in every test session."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Most of these tests compile programs that run for a moment, which takes half as long so (see `optimised`).
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# What one process has compiled serves the others of this run: workers, and commands that tests start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="rope-jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest
from jaxtyping import install_import_hook

from tests.array_types import check_arrays

# Shapes and dtypes of arrays in the signatures of these rooms are checked wherever tests call them.
install_import_hook(["rope_jax.rope"], f"{check_arrays.__module__}.{check_arrays.__name__}")

jax.config.update("jax_num_cpu_devices", 8)

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def optimised():
    """Programs of this module are compiled as users' are: for those that compute for long, or to the last digit."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")  # for processes that tests start
        yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the checkout; tests that need it skip where it is absent."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip(f"reference data is not at {folder}")
    return folder
