"""The checkpoint benchmark runs, checks what it measures and removes its files."""

import pytest

from tests.processes import output


@pytest.mark.slow
def test_at_a_small_size(tmp_path):
    said = output("benchmarks/checkpoint.py", "--layers", "2", "--width", "128", "--folder", tmp_path)
    rows = [line.split("|")[1].strip() for line in said.splitlines() if line.startswith("|")]
    assert rows[2:] == ["cp", "import and export", "zero-shot"]
    assert list(tmp_path.iterdir()) == []
