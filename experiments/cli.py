"""From the command line to a call: one message and an exit status for what a user can fix, no traceback."""

from __future__ import annotations

import ast
import errno
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments import distributed
from experiments.signals import Terminated, end_on_sigterm
from rope_jax.errors import InputError
from rope_jax.interop.verify import VerificationError
from rope_jax.training.loop import NonFiniteLoss


def run(experiment: Callable[[ConfigDict, Path, str], object], default_config: Path, several: bool = False) -> None:
    """Defines `--config` and `--workdir`, parses flags, joins the run's other processes and runs an experiment.

    Exit status 2 for unusable input, 1 for a full disk, a loss that is no longer finite or an export that
    computes something else, 130 for Ctrl-C, 143 for SIGTERM; in all
    cases what was finished before stays, and the same command goes on from it.

    Args:
        experiment: called with the locked config, the run's folder and the run's name.
        default_config: config file of a command without `--config`.
        several: whether the experiment can run in several processes (`config.distributed`).
    """

    def guarded(argv: list[str]) -> None:
        if argv[1:]:
            _stop(f"unexpected argument {argv[1]!r}: flags begin with --", 2)
        # Libraries announce their every checkpoint at the level of information.
        logging.set_verbosity(logging.WARNING)
        try:
            config = flags.FLAGS.config
            # A file that could not be loaded is only reported when a field of the config is used.
            config.lock()
        except OSError as error:
            _stop(f"--config: {' '.join(str(error).split())}", 2)
        name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
        folder = Path(flags.FLAGS.workdir or Path("runs") / name).resolve()
        try:
            distributed.start(config.distributed, several)
            # Behind it, for JAX takes the signal for itself.
            end_on_sigterm()
            experiment(config, folder, name)
        except InputError as error:
            _stop(str(error), 2)
        except (NonFiniteLoss, VerificationError) as error:
            _stop(str(error), 1)
        except KeyboardInterrupt:
            _interrupted("stopped", folder, signal.SIGINT)
        except Terminated as error:
            _interrupted(str(error) or "stopped", folder, error.number)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            _stop(f"the disk is full ({error}): free some and run the same command again, it goes on from here", 1)

    try:
        # Reads the config file and the fields on the command line at once.
        config_flags.DEFINE_config_file("config", str(default_config), "The run: a file of configs/.", lock_config=True)
    except AttributeError as error:
        # ml_collections' message: the field's name, and the most similar one there is.
        name, _, hint = ast.literal_eval(str(error)).partition("\n")
        _stop(f"there is no config field {name}. {hint} All fields: rope_jax/commands/fields.py", 2)
    flags.DEFINE_string("workdir", "", "Folder of the run; default runs/<name of the config file>.")
    app.run(guarded)


def _interrupted(what: str, folder: Path, number: int) -> None:
    print(f"\n{what}; the same command goes on from what {folder} holds", file=sys.stderr)
    # As shells count: 130 for Ctrl-C, 143 for SIGTERM.
    sys.exit(128 + number)


def _stop(message: str, status: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
