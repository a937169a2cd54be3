"""The folder of a run: which config it belongs to, and which stages it has finished."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from pathlib import Path

import jax
from ml_collections import ConfigDict

from rope_jax.errors import InputError
from rope_jax.report.files import read_json, write_json

# What may change between two commands on one folder without making earlier stages wrong.
MAY_CHANGE = ("compare", "mesh")


def claim(workdir: Path, config: ConfigDict) -> None:
    """Makes the folder this config's, or checks that it already is.

    Args:
        workdir: the run's folder; created.
        config: the run's config.

    Raises:
        InputError: if the folder holds a run of another config; the message names the fields.
    """
    now = json.loads(config.to_json())
    try:
        before = read_json(workdir / "config.json")
    except json.JSONDecodeError as error:
        raise InputError(f"{workdir / 'config.json'} is damaged ({error}): choose another --workdir") from error
    if before is None:
        try:
            write_json(workdir / "config.json", now)
        except OSError as error:
            raise InputError(f"--workdir={workdir} cannot be written to ({error.strerror})") from error
        return
    old, new = dict(_fields(before)), dict(_fields(now))
    differing = [
        field
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field) and field.split(".")[0] not in MAY_CHANGE
    ]
    if differing:
        field = differing[0]
        more = f" (and {', '.join(differing[1:])})" if differing[1:] else ""
        raise InputError(
            f"config.{field} is {new.get(field)!r}, but the run in {workdir} has {old.get(field)!r}{more}: "
            "choose another --workdir, or delete that folder to start over"
        )
    write_json(workdir / "config.json", now)


def needed_bytes(folder: Path, parameters: int, methods: tuple[str, ...], keep: int) -> int:
    """Disk that a run has yet to fill.

    Per method the checkpoints that are kept, each a float32 state of weights and two moments, and one more for
    the moment in which the newest is written; and the export.

    Args:
        folder: the run's folder; methods that have finished are not counted again.
        parameters: of the model.
        methods: methods of the run.
        keep: checkpoints kept.

    Returns:
        Bytes.
    """
    waiting = [method for method in methods if not (folder / "methods" / method / "after.json").exists()]
    return parameters * (12 * (keep * len(waiting) + bool(waiting)) + 4) if waiting else 0


def check_disk(workdir: Path, needed: int) -> None:
    """Checks that a run's files will fit.

    Args:
        workdir: the run's folder.
        needed: bytes still to be written.

    Raises:
        InputError: if the disk has less.
    """
    free = shutil.disk_usage(workdir).free
    if free < needed:
        raise InputError(
            f"--workdir={workdir} has {free / 1e9:.1f} GB free, and checkpoints and export need {needed / 1e9:.1f} "
            "GB: free some, choose another --workdir, or shorten config.compare"
        )


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    device = jax.devices()[0]
    return {
        "Python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "devices": f"{len(jax.devices())} x {device.device_kind}",
    }


def _fields(value, prefix=""):
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict):
            yield from _fields(item, f"{name}.")
        else:
            yield name, item
