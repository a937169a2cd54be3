"""The benchmark of accelerators, at a size that fits a test: that it runs, and what it writes."""

import json
import math

import pytest

from benchmarks.accelerator import BEGIN, END, HERE, README, tables
from tests.processes import output

ROW = {"case": "train", "of": ["1B", 8192], "by": "rope-jax", "trained": "all weights", "attention": "'cudnn'"}
ROW |= {"documents": "one", "seconds": 0.5, "tokens_per_second": 16384.0, "mfu": 0.456, "peak_bytes": 3 * 2**30}
FOUND = {"command": "python x", "count": 1, "device": "H100", "jax": "0.10.2", "machine": "a host", "peak": 989e12}
FOUND |= {"product": 7e14, "rows": [ROW, {"case": "train", "of": ["7B", 8192], "error": "RuntimeError: memory"}]}


def test_tables_hold_every_row_and_every_error():
    text = tables(FOUND)
    assert "| 1B | 8192 | one | rope-jax | all weights | 0.5 | 16,384 | 0.46 | 3.0 GiB |  |" in text
    assert "- train 7B 8192 : RuntimeError: memory" in text and "989 TFLOP/s" in text
    page = README.read_text(encoding="utf-8")
    written = page.partition(BEGIN)[2].partition(END)[0].strip()
    file = HERE / "accelerator.json"
    assert written == (tables(json.loads(file.read_text())).strip() if file.is_file() else "Not measured yet.")


@pytest.mark.slow
def test_all_cases_at_a_small_size(tmp_path):
    output("benchmarks/accelerator.py", "--small", f"--out={tmp_path / 'small.json'}")
    rows = json.loads((tmp_path / "small.json").read_text())["rows"]
    assert not [row for row in rows if "error" in row]
    assert [row["case"] for row in rows[4:]] == ["train", "train", "train_peer", "generate", "generate_peer"]
    for row in rows[:4]:  # float32 sums of tens of terms
        assert row["error_of_values"] < 1e-6 and row["error_of_gradients"] < 1e-5
    for row in rows[4:7]:  # random weights predict nothing
        assert row["loss"] == pytest.approx(math.log(64), abs=0.1)
    assert tables(json.loads((tmp_path / "small.json").read_text())).count("\n|") == 2 * 3 + len(rows)
