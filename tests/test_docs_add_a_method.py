"""`docs/add_a_method.md` adds a method by its own words."""

import re
import sys
import types
from pathlib import Path

from rope_jax.rope import methods

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "add_a_method.md").read_text(encoding="utf-8")


def run(code: str, name: str) -> dict:
    """The names that a file of this content defines."""
    module = types.ModuleType(name)
    sys.modules[name] = module  # where a dataclass looks for its module
    try:
        exec(compile(code, "docs/add_a_method.md", "exec"), vars(module))
    finally:
        del sys.modules[name]
    return vars(module)


def test_the_page_adds_a_method(monkeypatch):
    method, test = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(method.splitlines()) <= 21
    name, called = re.search(r'"(\w+)": (\w+),', PAGE).groups()
    monkeypatch.setitem(methods.METHODS, name, run(method, "slow_pairs")[called])
    (check,) = (value for key, value in run(test, "test_slow_pairs").items() if key.startswith("test_"))
    check()
