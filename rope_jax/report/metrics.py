"""Training metrics on disk: one JSON line per step, and TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

from tensorboardX import SummaryWriter

from rope_jax.files import write_text


class MetricsWriter:
    """Appends metrics to `metrics.jsonl` and a TensorBoard event file in one folder.

    Args:
        folder: created if absent.
        start: step the run goes on from; what a previous attempt wrote beyond it is dropped, so that each
            step stands in the file once.
    """

    def __init__(self, folder: Path, start: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= start]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._lines = self.path.open("a", encoding="utf-8", buffering=1)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_):
        self._lines.close()
        self._board.close()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes one step.

        Args:
            step: update number, from 1.
            metrics: name to finite float.
        """
        self._lines.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)


def read_metrics(path: Path) -> list[dict]:
    """Reads a `metrics.jsonl`.

    Args:
        path: the file; a missing file is an empty list, and a last line cut short by a crash is left out.

    Returns:
        One dict per step.
    """
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
