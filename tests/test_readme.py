"""What the README shows is what happens."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def test_library_example_prints_what_its_comment_says(capsys):
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    exec(compile(code, "README.md", "exec"), {})
    printed = float(capsys.readouterr().out)
    assert printed == pytest.approx(float(re.search(r"# ([\d.]+);", code)[1]), abs=0.005)


def test_files_it_links_to_exist():
    root = Path(__file__).resolve().parents[1]
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README) + re.findall(r"`(configs/\w+\.py)`", README):
        assert (root / target).exists(), target
