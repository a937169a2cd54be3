"""Shared fixtures. Tests see eight virtual CPU devices, so that sharded code runs in every test session."""

import atexit
import gc
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Most tests compile programs that run for a moment. Fewer optimisations, and kernels that are not emitted through MLIR,
# take a third of the time, and modules that are not split for several threads a tenth less. Tests of the CPU
# formulations, and those that compute for long, use `optimised`.
# Later releases of jaxlib need not know the flags, and end a process that sets an unknown one.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if version("jaxlib").startswith("0.10.") and "fusion_emitters" not in os.environ.get("XLA_FLAGS", ""):
    faster = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {faster}".strip()

# Values of different dtypes meet only where the code converts them, in the commands that tests start, too.
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")

# The workers of pytest-xdist share the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Workers and the commands that tests start share one compilation cache.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="rope-jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest
from jaxtyping import install_import_hook

from tests.array_types import check_arrays

# Shapes and dtypes of arrays in the signatures of these rooms are checked wherever tests call them.
install_import_hook(["rope_jax.rope", "rope_jax.model"], f"{check_arrays.__module__}.{check_arrays.__name__}")

jax.config.update("jax_num_cpu_devices", 8)

pytest_plugins = ("pytester",)

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"

# Why a test may be skipped.
MISSING_DATA = f"reference data is not at {SHARED}"
SKIPS = ("needs Chromium", "the kernels need a GPU", "set ROPE_JAX_LONG=1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Files with slow tests are run first, so that no worker is left with a long one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """Modules and tests stay to the end: the garbage collector need not look at them again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    """In CI a test is skipped only because this machine lacks what it needs."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("CI") or terminal is None:
        return
    allowed = (*SKIPS, *(() if SHARED.is_dir() else (MISSING_DATA,)))
    for report in terminal.stats.get("skipped", []):
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(known in reason for known in allowed):
            terminal.write_line(f"{report.nodeid} may not be skipped: {reason}", red=True)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="module")
def optimised():
    """Programs of this module are compiled with XLA's optimisations, as users compile them."""
    flag = "--xla_cpu_use_fusion_emitters=false"
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    with pytest.MonkeyPatch.context() as patch:
        if flag in os.environ.get("XLA_FLAGS", ""):
            # XLA reads its flags once in a process, and JAX has no public option for every program: where this name
            # moves, the tests that use this fixture fail.
            from jax._src import compiler

            options = compiler.get_compile_options

            def as_users_compile(*arguments, env_options_overrides=None, **named):
                overrides = {"xla_cpu_use_fusion_emitters": True, **(env_options_overrides or {})}
                return options(*arguments, env_options_overrides=overrides, **named)

            patch.setattr(compiler, "get_compile_options", as_users_compile)
            patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace(flag, ""))
        # For processes that tests start.
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
        yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the checkout; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(MISSING_DATA)
    return SHARED
