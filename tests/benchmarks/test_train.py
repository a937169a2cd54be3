"""The benchmark of training, at a size that fits a test: what it prints, not how fast."""

import json

import pytest

from benchmarks.train import SHAPE
from tests.processes import output


@pytest.mark.slow
def test_both_sides_make_the_same_first_step(tmp_path):
    shape = SHAPE | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 128}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    flags = ("--cases", "64x2", "--repeats=1", "--peer", "--peak=1e11")
    out = output("benchmarks/train.py", f"--model={tmp_path}", *flags)
    ours, peer = ([cell.strip() for cell in line.split("|")] for line in out.splitlines() if line.startswith("| 64"))
    # Float32 on both sides; the last of five decimals may round differently.
    assert float(ours[10]) == pytest.approx(float(peer[10]), abs=2e-5)
    assert all(float(row[4]) >= 0 and row[8].endswith("GiB") for row in (ours, peer)) and ours[9].endswith("GiB")
