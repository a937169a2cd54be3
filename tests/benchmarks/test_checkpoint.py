"""The checkpoint benchmark runs, checks what it measures and leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_at_a_small_size(tmp_path):
    done = subprocess.run(
        [sys.executable, "benchmarks/checkpoint.py", "--layers", "2", "--width", "128", "--folder", str(tmp_path)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        check=True,
        capture_output=True,
        text=True,
    )
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("|")]
    assert rows[2:] == ["cp", "import and export", "zero-shot", "zero-shot, attention factor"]
    assert list(tmp_path.iterdir()) == []
