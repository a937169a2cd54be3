"""What engines compute with exports, against this package.

    python -m tests.engines.measure FOLDER RESULTS.json [ENVIRONMENT ...] [--only "FAMILY METHOD" ...]

FOLDER holds the environments of `tests.engines.environments`, and takes the exports. RESULTS.json is what
`docs/engines.py` makes its page of; what it holds of other environments and models stays. `--only` takes patterns, such
as "SmolLM2* *".
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import functools
import json
import platform
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from rope_jax.cli.verify import text
from rope_jax.commands.reporter import Silent
from rope_jax.commands.verify import OWN, Probe, candidates, columns, compare, scores
from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.interop.engines import Question, ask
from rope_jax.interop.huggingface import check_model
from tests.engines.environments import ENVIRONMENTS, interpreter
from tests.engines.models import SMOLLM2_MODELS, TINY, Export, make, names

# Tokens on each side of the original context.
TOKENS = 1000

# Mean nats per token that float32 may differ by, and activations of 8 bits.
TOLERANCE, QUANTISED = 1e-3, 0.1


def measure(environments: Path, name: str, exports: Iterable[Export]) -> list[dict]:
    """What one engine computes with every export.

    Returns:
        A row for each: `engine` with its version, `family`, `method`, and `below`, `above` and `largest` in nats as
        `rope_jax.commands.verify.compare` gives them, with `applied`; or `refused`, the reason.
    """
    engine = ENVIRONMENTS[name][0]
    rows, asked = [], []
    for export in exports:
        path = export.gguf if engine == "llama.cpp" else export.folder
        row = {"environment": name, "family": export.family, "method": export.method}
        rows.append(row)
        if isinstance(path, str):
            row["refused"] = path
            continue
        probe, ours = expected(path, export.original)
        tolerance = QUANTISED if engine == "llama.cpp" and export.quantised else TOLERANCE
        asked.append((row, dataclasses.replace(probe, tolerance=tolerance), ours))
    version, answers = ask(
        engine,
        [Question(probe.path, probe.tokens, probe.columns) for _, probe, _ in asked],
        str(interpreter(environments, name)),
        timeout=3600,
    )
    for row in rows:
        row |= {"engine": version}
    for (row, probe, ours), theirs in zip(asked, answers):
        if isinstance(theirs, str):
            row["refused"] = theirs
            continue
        found = compare(probe, ours, theirs, Silent())
        if found["applied"] is None:
            others = scores(probe, candidates(probe.own, probe.model, probe.original))
            found = compare(probe, others, theirs, Silent())
        row |= {"applied": found["applied"], "tokens": len(probe.columns)} | found["vectors"][OWN]
    return rows


@functools.cache
def expected(path: Path, original: int) -> tuple[Probe, dict[str, np.ndarray]]:
    """What an engine is asked about a model, and what this package computes under the model's own vector."""
    known = check_model(path)
    config = dataclasses.replace(known.config, param_dtype="float32")
    wanted = columns(original, config.context, TOKENS)
    tokens = text(load_tokenizer(path), int(wanted[-1]) + 1)
    probe = Probe(path, config, known.rope, original, tokens, wanted, TOLERANCE)
    return probe, scores(probe, [(OWN, known.rope)])


def main(place: Path, results: Path, environments: list[str], patterns: list[str]) -> None:
    wanted = [name for name in names() if any(fnmatch.fnmatch(" ".join(name), pattern) for pattern in patterns)]
    shutil.rmtree(place / "exports", ignore_errors=True)
    exports = [make(place / "exports", *name) for name in wanted]
    for environment in environments or ENVIRONMENTS:
        rows = measure(place, environment, exports)
        print(json.dumps(rows, indent=1), flush=True)
        kept = json.loads(results.read_text())["rows"] if results.exists() else []
        found = {(row["environment"], row["family"], row["method"]): row for row in [*kept, *rows]}
        order = [(environment, *name) for environment in ENVIRONMENTS for name in [*TINY, *SMOLLM2_MODELS]]
        machine = f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}"
        written = {"machine": machine, "rows": [found[name] for name in order if name in found]}
        results.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("environments", nargs="*")
    parser.add_argument("--only", nargs="+", default=["*"])
    given = parser.parse_args()
    main(given.folder.resolve(), given.results, given.environments, given.only)
