"""From a config to an export."""

import dataclasses
import os
from pathlib import Path

from ml_collections import ConfigDict

from rope_jax.cli import build, names, shell
from rope_jax.cli.config import default_config
from rope_jax.commands import export as procedure
from rope_jax.commands.export_job import Formats, Job, check, trained_job, untrained_job
from rope_jax.commands.fields import LEARNED
from rope_jax.commands.reporter import Reporter
from rope_jax.errors import InputError
from rope_jax.files import read_json
from rope_jax.runs.folder import RunFolder
from rope_jax.sharding import make_mesh


def export(config: ConfigDict, folder: Path, name: str, reporter: Reporter | None = None) -> dict:
    """Writes the formats that a config asks for, and verifies them if it asks for that.

    Returns:
        What `verify.json` holds: what was compared, by file. Empty without `config.verify`.

    Raises:
        VerificationError: naming the file and what differs.
    """
    reporter = reporter or shell.Terminal()
    with names.config_names(), names.section("export"):
        build.check(config)
        wanted = formats(config)
        job = finished_run(config) if config.export.run else zero_shot(config, folder)
        check(job, wanted, folder)
        measure = job.recipe.measure
        reporter.say(
            f"{name}: {measure.original:,} to {measure.target:,} tokens by {job.method}; everything goes to {folder}"
        )
        with RunFolder(folder).locked():
            return procedure.export(job, wanted, folder, reporter)


def zero_shot(config: ConfigDict, folder: Path) -> Job:
    """A model as it is under a method's scale vector."""
    if not config.model.path:
        raise InputError("`model.path` and `export.run` are empty: name the model, or the run, to export")
    learned = {LEARNED: "it takes texts: run experiments.extend and export that run"}
    return untrained_job(build.recipe(config, build.source(config, folder), build.NO_OWN | learned))


def finished_run(config: ConfigDict) -> Job:
    """A run of `experiments.extend`, as its folder describes it."""
    fields = config.export
    folder = Path(os.path.realpath(os.path.expanduser(fields.run)))
    if not os.path.isfile(folder / "config.json"):
        raise InputError(f"`run` is {fields.run}: that is no folder of a run (it has no config.json)")
    ran = default_config()
    try:
        ran.update(_tuples(read_json(folder / "config.json")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{folder / 'config.json'} is no config of a run ({error})") from None
    recipe = build.recipe(ran, build.source(ran, folder, finished=True))
    return trained_job(recipe, folder, fields.method, fields.step, make_mesh(**config.mesh))


def formats(config: ConfigDict) -> Formats:
    chosen = {
        field.name: config.export[field.name] for field in dataclasses.fields(Formats) if field.name in config.export
    }
    chosen |= {name: tuple(chosen[name]) for name in ("formats", "verify_lengths")}
    return Formats(**chosen, verify=config.verify, seed=config.seed)


def _tuples(value):
    """The lists of JSON as the tuples that configs have."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
