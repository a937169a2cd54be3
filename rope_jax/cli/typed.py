"""Command lines, spelled as this one is: of the installed command, or of `python -m experiments.NAME`."""

import shlex
import sys
from pathlib import Path


def command(name: str) -> str:
    """The command line that repeats this one."""
    program = "rope-jax" if _installed() else f"python -m experiments.{name}"
    return " ".join([program, *map(shlex.quote, sys.argv[1:])])


def next_commands(run: Path) -> tuple[str, ...]:
    """What one does with a finished run: measures its export, asks an engine about it, and writes other formats."""
    folder, export = (shlex.quote(str(place)) for place in (run, run / "export"))
    if _installed():
        return (
            f"rope-jax evaluate {folder} --suite passkey,key_value",
            f"rope-jax verify {export} --engine transformers",
            f"rope-jax export --run {folder} --formats hf,gguf",
        )
    return (
        f"python -m experiments.evaluate --config.model.path={folder} --config.suite=passkey,key_value",
        f"python -m experiments.verify --config.model.path={export} --config.engine.name=transformers",
        f"python -m experiments.export --config.export.run={folder} --config.export.formats=\"('hf','gguf')\"",
    )


def _installed() -> bool:
    """Whether the user came through the installed command."""
    return Path(sys.argv[0]).stem == "rope-jax"
