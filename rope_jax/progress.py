"""Progress bars on standard error; where that is a file, whole lines."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

# Between two lines of a bar in a file.
_SECONDS = 10.0


class Lines(tqdm):
    """A bar for a file: a line every `_SECONDS`, and nothing that moves a cursor."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if text := str(self) if msg is None else msg:
            self.fp.write(f"{text.rstrip()}\n")
            self.fp.flush()
        return False  # nothing to clear

    def clear(self, *_: Any, **__: Any) -> None:
        pass


def bar(description: str, items: Iterable | None = None, **options: Any) -> tqdm:
    """A bar as tqdm draws it in a terminal and in a notebook; lines elsewhere. `options` are tqdm's."""
    if _drawn():
        return tqdm(items, desc=description, file=sys.stderr, **options)
    # Without columns tqdm writes numbers only; a first line comes after `delay`.
    options |= {"leave": False, "delay": _SECONDS / 2, "mininterval": _SECONDS, "ncols": 0}
    return Lines(items, desc=description, file=sys.stderr, **options)


def note(text: str) -> None:
    """Writes a line beside the bars."""
    if _drawn():
        tqdm.write(text, file=sys.stderr)
    else:
        sys.stderr.write(f"{text}\n")


def _drawn() -> bool:
    return sys.stderr.isatty() or type(sys.stderr).__module__.startswith("ipykernel")
