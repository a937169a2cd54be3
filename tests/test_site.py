"""The documentation site builds without a warning, and its page of messages quotes the source."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"


@pytest.mark.slow
def test_builds(tmp_path):
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "-d", tmp_path / "trees", DOCS, tmp_path / "html"],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert "rope_jax.rope.disturbance.disturbance" in (tmp_path / "html" / "api.html").read_text(encoding="utf-8")


def messages() -> str:
    """All strings of the library, with an ellipsis for each value, and without backticks."""
    found = []
    for path in sorted((REPOSITORY / "rope_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found).replace("`", "")


def test_messages_are_those_of_the_source():
    quoted = re.findall(r"^\| `([^`]+)` \|", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.M)
    known = messages()
    assert len(quoted) > 20
    for message in quoted:
        parts = (re.escape(part.strip()) for part in message.split("…"))
        assert re.search("[^\n]*?".join(parts), known), message
