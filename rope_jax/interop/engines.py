"""Serving engines, each run in its own environment, as another program runs them."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rope_jax.errors import InputError
from rope_jax.interop import engine_worker

ENGINES = tuple(engine_worker.ENGINES)


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
    """Tokens ``[T]`` of which an engine is to give the log probabilities at `columns`, each after all before it."""

    model: Path
    tokens: np.ndarray
    columns: np.ndarray


def ask(
    engine: str, questions: Sequence[Question], python: str = "", timeout: float | None = None
) -> tuple[str, list[np.ndarray | str]]:
    """Asks an engine for log probabilities.

    Args:
        engine: one of `ENGINES`.
        questions: all are answered by one process.
        python: interpreter of the engine's environment; empty for this one's.
        timeout: seconds for all; None for no limit.

    Returns:
        The engine's name and version. For each question float64 log probabilities in nats, in the order of its columns,
        or the engine's own words on why it gives none.

    Raises:
        InputError: naming the argument and the fix, if the engine cannot be started.
    """
    jobs = [
        {
            "model": os.path.abspath(q.model),
            "tokens": np.asarray(q.tokens).tolist(),
            "columns": np.asarray(q.columns).tolist(),
        }
        for q in questions
    ]
    with tempfile.TemporaryDirectory(prefix="rope-jax-engine-") as place:
        asked, answers = Path(place) / "jobs.json", Path(place) / "answers.json"
        asked.write_text(json.dumps({"engine": engine, "jobs": jobs}), encoding="utf-8")
        # Isolated: packages of this environment, and the modules beside the script, are not the engine's.
        command = [python or sys.executable, "-I", str(Path(engine_worker.__file__)), str(asked), str(answers)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        how: dict = {"cwd": place, "env": environment, "timeout": timeout, "errors": "replace"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, **how)
        except OSError as error:
            raise InputError(
                f"`python` is {python}, which cannot be run ({error}): give the interpreter of an environment with "
                f"{engine}"
            ) from None
        except subprocess.TimeoutExpired:
            raise InputError(f"{engine} gave no answer within {timeout:g} s", field="engine") from None
        if not answers.is_file():
            last = "\n".join(done.stderr.strip().splitlines()[-3:])
            raise InputError(
                f"{engine} did not run in {python or sys.executable} (status {done.returncode}): {last}\n"
                "give in `python` the interpreter of an environment that has it",
                field="python",
            )
        found = json.loads(answers.read_text(encoding="utf-8"))
    return found["version"], [a if isinstance(a, str) else np.asarray(a, np.float64) for a in found["answers"]]
