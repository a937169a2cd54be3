"""Progress bars where standard error is a terminal, and where it is a file."""

import io
import sys

import pytest

from rope_jax import progress


def test_a_file_gets_whole_lines(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    progress.note("compiling")
    for step in progress.bar("  yarn", range(3), unit="step"):
        progress.note(f"a note at {step}")
    with progress.bar("reading", unit="B", unit_scale=True) as shown:
        shown.total = 2000
        shown.update(1000)
    written = file.getvalue()
    assert "\r" not in written and "\x1b" not in written and "\n\n" not in written
    assert "  yarn:  67% 2/3 [" in written and "reading:  50% 1.00k/2.00k [" in written
    assert written.startswith("compiling\n") and "\na note at 2\n" in written


def test_a_short_bar_writes_nothing_to_a_file(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    assert list(progress.bar("passkey", range(3), delay=1)) == [0, 1, 2]
    assert file.getvalue() == ""


@pytest.mark.parametrize("leave", [True, False])
def test_a_terminal_gets_a_bar(monkeypatch, leave):
    file = io.StringIO()
    monkeypatch.setattr(file, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", file)
    list(progress.bar("passkey", range(3), leave=leave))
    assert "passkey:   0%|  " in file.getvalue() and "\r" in file.getvalue()
