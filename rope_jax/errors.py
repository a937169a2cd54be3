"""What a caller can correct."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

# Characters of a message. A file that is not trusted may hold names and values of any length.
_LONGEST = 4000
_QUOTED = re.compile(r"`([\w.]+)`")


class InputError(ValueError):
    """An input that cannot be used, and how to correct it.

    The message names arguments of the function that raises it in backticks:
    ``InputError(f"`target` is {target}, not above `original` ({original})")``.
    A command knows an argument as a config field and renames it.

    Attributes:
        field: the argument at fault, by default the one that the message begins with; empty if a file or a text is at
            fault.
    """

    def __init__(self, message: str, field: str = ""):
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 4 :]}"
        super().__init__(message)
        begins = _QUOTED.match(message)
        self.field = field or (begins[1] if begins else "")

    def renamed(self, names: Mapping[str, str]) -> InputError:
        """The same error under the caller's names, instead of arguments in backticks.

        `names` is argument to that name, such as ``{"target": "config.context.target"}``; those that are missing stay.
        """
        message = _QUOTED.sub(lambda quoted: names.get(quoted[1], quoted[0]), str(self))
        return InputError(message, names.get(self.field, self.field))


def require(owner: object, field: str, condition: object, fix: str) -> None:
    """Raises `InputError` with the value of a field of `owner` and how to correct it, unless the condition holds."""
    if not condition:
        raise InputError(f"`{field}` is {getattr(owner, field)!r}: {fix}")


def nearest(word: object, known: Iterable[str]) -> str:
    """A question after the known word that is most like another one, and a space; empty without one."""
    found = difflib.get_close_matches(str(word), list(known), 1)
    return f"did you mean {found[0]!r}? " if found else ""
