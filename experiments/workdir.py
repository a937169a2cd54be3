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
from rope_jax.files import read_record, write_json

# What may change between two commands on one folder without making earlier stages wrong.
MAY_CHANGE = (
    "compare",
    "mesh",
    "model.attention",
    "model.remat",
    "distributed",
    "debug",
    "compilation_cache",
    "plan",
)


def check(folder: Path, config: ConfigDict, may_change: tuple[str, ...] = MAY_CHANGE) -> None:
    """Checks that a folder can be this config's, without writing to it.

    Args:
        folder: the run's folder.
        config: the run's config.
        may_change: fields, or sections of fields, that may differ.

    Raises:
        InputError: if the folder holds a run of another config, naming the fields, or cannot be created.
    """
    try:
        before = read_record(folder / "config.json")
        folder.mkdir(parents=True, exist_ok=True)
    except json.JSONDecodeError as error:
        raise InputError(f"{folder / 'config.json'} is damaged ({error}): choose another --workdir") from error
    except OSError as error:
        raise InputError(f"--workdir={folder} cannot be written to ({error.strerror}): choose another") from error
    if before is None:
        return
    old, new = dict(_fields(before)), dict(_fields(json.loads(config.to_json())))
    differing = [
        field
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field) and not {field, field.split(".")[0]} & set(may_change)
    ]
    if differing:
        field = differing[0]
        more = f" (and {', '.join(differing[1:])})" if differing[1:] else ""
        raise InputError(
            f"config.{field} is {new.get(field)!r}, but the run in {folder} has {old.get(field)!r}{more}: "
            "choose another --workdir, or delete that folder to start over"
        )


def claim(folder: Path, config: ConfigDict) -> None:
    """Makes a folder this config's; called once every check has passed, so that a corrected config still fits.

    Args:
        folder: the run's folder, checked.
        config: the run's config.
    """
    write_json(folder / "config.json", json.loads(config.to_json()))


def compilation_cache(folder: Path, field: str) -> None:
    """Has JAX keep compiled programs for later commands, unless the environment says where it does.

    Args:
        folder: the run's folder.
        field: `config.compilation_cache`: a folder, empty for one in the run's, or 'off'.
    """
    if field != "off" and not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(Path(field).expanduser() if field else folder / "compiled"))


def needed_bytes(folder: Path, parameters: int, trained: int, methods: tuple[str, ...], keep: int) -> int:
    """Disk that a run has yet to fill.

    Per method the checkpoints that are kept, each a float32 state of what is trained and two moments, and one more
    for the moment in which the newest is written; and the export.

    Args:
        folder: the run's folder; methods that have finished are not counted again.
        parameters: of the model.
        trained: those of them, or of factors beside them, that are trained.
        methods: methods of the run.
        keep: checkpoints kept, the best among them.

    Returns:
        Bytes.
    """
    waiting = [method for method in methods if not (folder / "methods" / method / "after.json").exists()]
    return 12 * trained * (keep * len(waiting) + 1) + 4 * parameters if waiting else 0


def check_disk(folder: Path, needed: int) -> None:
    """Checks that a run's files will fit.

    Args:
        folder: the run's folder.
        needed: bytes still to be written.

    Raises:
        InputError: if the disk has less.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"--workdir={folder} has {free / 1e9:.1f} GB free, and checkpoints and export need {needed / 1e9:.1f} "
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
