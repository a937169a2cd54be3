"""A field of a config: its name, default, meaning and check."""

import dataclasses
import math
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rope_jax.errors import InputError, nearest

# Bounds of a number whose check has no other, by its type: steps and tokens are counted in int32.
LARGEST = {int: 2**31 - 1, float: 1e12}


@dataclasses.dataclass(frozen=True)
class Check:
    """The values that a field accepts on its own, `least` and `most` included. Of a tuple, every element is checked.

    Some commands know `more` choices than the others; a message offers them only there.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    zero: bool = False  # accepted besides
    choices: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    registered: Collection[str] = ()  # choices that a user's program adds
    suffix: str = ""  # pattern of what may follow a choice

    def accepts(self, value: Any) -> bool:
        if isinstance(value, tuple):
            return all(map(self.accepts, value))
        if self.choices:
            word = re.sub(f"({self.suffix})$", "", value)
            return word in (*self.choices, *self.more, *self.registered)
        return (self.zero and value == 0) or (
            abs(value) < math.inf  # an integer may be too large for a float
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def nearest(self, value: Any) -> str:
        """A question after the choice that is most like a value which is not accepted; empty without one."""
        words = [word for word in (value if isinstance(value, tuple | list) else (value,)) if not self.accepts(word)]
        return nearest(words[0], (*self.choices, *self.registered)) if self.choices else ""

    def __str__(self) -> str:
        if self.choices:
            return "use " + ("one of " if len(self.choices) > 2 else "") + listed(self.choices)
        limits = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        bounds = (f"{word} {limit:.10g}" for word, limit in limits.items() if limit is not None)
        return "it must be " + "0 or " * self.zero + " and ".join(bounds)


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a config.

    Attributes:
        name: section and name, such as 'train.steps'.
        default: its type is the field's.
        meaning: what it sets, with its unit, and what 0 or an empty value stands for.
        element: type of the elements of a tuple.
    """

    name: str
    default: Any
    meaning: str
    check: Check | None = None
    element: type = str

    def check_value(self, value: Any, known: Sequence[str] = ()) -> None:
        """Raises InputError, with this field's name, for a value that is not accepted.

        `known` are choices that the command knows and others do not.
        """
        kind = type(self.default)
        if kind is tuple:
            fits = isinstance(value, tuple | list) and all(_is(item, self.element) for item in value)
            expected = f"a tuple of {self.element.__name__}"
        else:
            fits, expected = _is(value, kind), f"of type {kind.__name__}"
        if not fits:
            raise InputError(f"`{self.name}` is {_shown(value)}: it must be {expected}")
        number = self.element if kind is tuple else kind
        if number in LARGEST and not (self.check and self.check.most is not None):
            items: Any = value if kind is tuple else (value,)
            for item in items:
                if not abs(item) <= LARGEST[number]:  # NaN too
                    raise InputError(
                        f"`{self.name}` is {_shown(value)}: it must be finite, and at most {LARGEST[number]:.10g}"
                    )
        if self.check and not self.check.accepts(tuple(value) if kind is tuple else value):
            offered = tuple(choice for choice in self.check.more if choice in known)
            check = dataclasses.replace(self.check, choices=(*self.check.choices, *self.check.registered, *offered))
            raise InputError(f"`{self.name}` is {_shown(value)}: {self.check.nearest(value)}{check}")


def at_least(least: float, most: float | None = None) -> Check:
    return Check(least=least, most=most)


def above(limit: float, most: float | None = None) -> Check:
    return Check(above=limit, most=most)


def one_of(*choices: str) -> Check:
    return Check(choices=choices)


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, float | int) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:
        return "an integer of thousands of digits"
    return text if len(text) <= 100 else f"{text[:97]}..."


def listed(choices: Iterable[str]) -> str:
    return ", ".join(map(repr, choices))
