"""What the benchmarks share: options, the line that describes the machine, timing, tables and peak memory."""

import argparse
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

# The config of a model of 15M parameters, as Hugging Face writes it.
SHAPE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 288,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser of options that prints a script's docstring as it is."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def machine(**versions: str) -> str:
    """The processor, its load, and the versions of what is measured."""
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    load = f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
    return f"{_processor()}, {load}; Python {platform.python_version()}" + (f", {packages}" if packages else "")


def seconds(call: Callable, *arguments: Any) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def interleaved(first: Callable, second: Callable, repeats: int) -> tuple[float, float, float]:
    """Median seconds of two sides, and median ratio of the second to the first.

    They are called alternately, since the speed of a machine varies.
    """
    pairs = [(seconds(first), seconds(second)) for _ in range(repeats)]
    one, other = (statistics.median(times) for times in zip(*pairs))
    return one, other, statistics.median(b / a for a, b in pairs)


def head(*names: str) -> None:
    """Prints the head of a Markdown table."""
    row(*names)
    print("|" + "---|" * len(names), flush=True)


def row(*cells: Any) -> None:
    """Prints a row of a Markdown table."""
    print(markdown_row(*cells), flush=True)


def markdown_row(*cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def in_own_process(call: Callable, *arguments: Any, limit: float | None = None) -> Any:
    """Calls a function of a module in a fresh process, so that compilation and peak memory are its own.

    Raises TimeoutError after `limit` seconds.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(call, *arguments).result(limit)
        except TimeoutError:
            for process in multiprocessing.active_children():
                process.kill()
            raise


def peak_bytes() -> int:
    """Peak resident memory of this process. Pages of mapped files count."""
    try:
        # `ru_maxrss` would include the process that started this one.
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
