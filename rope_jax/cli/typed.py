"""Command lines, spelled as this one is: `python -m experiments.NAME`, or else the installed command."""

import shlex
import sys
from pathlib import Path

from ml_collections import ConfigDict

from rope_jax.cli import build
from rope_jax.cli.starts import STARTS
from rope_jax.commands.fields import DEFAULTS, changed


def command(name: str, config: ConfigDict, folder: Path) -> str:
    """The command line that repeats this one, or that does what a program has called."""
    if _in_repository() or Path(sys.argv[0]).stem == "rope-jax":
        words = [f"python -m experiments.{name}"] if _in_repository() else ["rope-jax"]
        return " ".join([*words, *map(shlex.quote, sys.argv[1:])])
    words = ["rope-jax", name, "-o", str(folder)]
    for field, found in changed(build.settings(config), {**DEFAULTS, **STARTS[name]}).items():
        value = found["value"]
        words += ["--set", f"{field}={','.join(map(str, value)) if isinstance(value, list) else value}"]
    return shlex.join(words)


def next_commands(run: Path) -> tuple[str, ...]:
    """What one does with a finished run: measures its export, asks an engine about it, and writes other formats."""
    folder, export = (shlex.quote(str(place)) for place in (run, run / "export"))
    if not _in_repository():
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


def _in_repository() -> bool:
    """Whether the user came through `python -m experiments.NAME`."""
    return Path(sys.argv[0]).parent.name == "experiments"
