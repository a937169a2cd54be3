"""The flags of a command: a config file, its fields, and the run's folder."""

import ast
import contextlib
import os
import re
import traceback
from collections.abc import Callable
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from rope_jax.cli.ending import stop
from rope_jax.cli.shell import guarded

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


# Called with the locked config, the run's folder and the run's name.
Command = Callable[[ConfigDict, Path, str], object]


def run(command: Command, default_config: Path, several: bool = False, dry_run: bool = False) -> None:
    """Defines `--config`, `--workdir` and `--debug`, parses flags and runs a command.

    Args:
        command: what runs.
        default_config: config file of a command without `--config`.
        several: whether the command can run in several processes (`config.distributed`).
        dry_run: whether the command has the flag `--dry_run`.
    """
    try:
        # Reads the config file and the fields on the command line at once.
        config_flags.DEFINE_config_file("config", str(default_config), "The run: a file of configs/.", lock_config=True)
    except AttributeError as error:
        stop(_config_problem(error), 2)
    flags.DEFINE_string("workdir", "", "Folder of the run; default runs/<name of the config file>.")
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
    if dry_run:
        flags.DEFINE_bool("dry_run", False, "Only check everything, and report the minutes of each stage here.")
    app.run(lambda argv: _run(argv, command, several), flags_parser=_parsed)


def _parsed(argv: list[str]) -> list[str]:
    """Parses flags; absl's own parser answers a wrong one with its usage."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        found = re.match(r"Found (.*) in argv before a value for --config", str(error))
        stop(f"{found[1]} comes before --config: give --config first" if found else _one_line(error), 2)
    except Exception as error:  # of the config's own code
        stop(_config_problem(error), 2)


def _config_problem(error: Exception) -> str:
    """Why a config file cannot be used, with the last line of it that ran."""
    if isinstance(error, AttributeError):
        # ml_collections quotes its message: the field's name, and the most similar field there is.
        with contextlib.suppress(SyntaxError, ValueError):
            name, _, hint = ast.literal_eval(str(error)).partition("\n")
            return f"there is no config field {name}. {hint} All fields: rope_jax/commands/fields.py"
    ran = traceback.extract_tb(error.__traceback__)[-1]
    own = Path(ran.filename).is_file() and "site-packages" not in ran.filename
    place = f" ({ran.filename}:{ran.lineno})" if own else ""
    return f"--config: {type(error).__name__}: {_one_line(error)}{place}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _run(argv: list[str], command: Command, several: bool) -> None:
    if argv[1:]:
        stop(f"unexpected argument {argv[1]!r}: flags begin with --", 2)
    file = Path(config_flags.get_config_filename(flags.FLAGS["config"]))
    try:
        config = flags.FLAGS.config
        # A file that could not be loaded is only reported when a field of the config is used.
        config.lock()
    except (OSError, TypeError) as error:
        stop(f"--config={file}: {_one_line(error) if file.is_file() else 'there is no such file'}", 2)
    # Not resolved: a loop of links is refused where the folder is made.
    folder = Path(os.path.abspath(flags.FLAGS.workdir or Path("runs") / file.stem))
    call = lambda: command(config, folder, file.stem)  # noqa: E731
    guarded(call, config, folder, several=several, debug=flags.FLAGS.debug)
