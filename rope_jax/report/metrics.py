"""Training metrics on disk: one JSON line per step, and TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

from rope_jax.files import write_text


class MetricsWriter:
    """Appends metrics to `metrics.jsonl` and a TensorBoard event file in one folder.

    Rows after step `start`, that of the checkpoint that the run resumes from, are dropped: an interrupted attempt wrote
    them.
    """

    def __init__(self, folder: Path, start: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= start]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._lines = self.path.open("a", encoding="utf-8", buffering=1)
        # Here, because its import imports PyTorch where that is installed.
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_):
        self._lines.close()
        self._board.close()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes the metrics (name to finite float) of a step, counted from 1."""
        self._lines.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)


def read_metrics(path: Path) -> list[dict]:
    """The rows of a `metrics.jsonl`, if it exists, up to one that is damaged, such as a last one that a crash cut."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            break
        rows.append(row)
    return rows
