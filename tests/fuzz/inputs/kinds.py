"""An input, and a class of inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tests.fuzz.damage import Change

TEXT = "The model turns 12345 angles, caf\u00e9 \u4f60\u597d \U0001f600.\n"


@dataclasses.dataclass(frozen=True)
class Input:
    """An input of a class.

    Attributes:
        prepare: changes a folder that holds the valid files of the class.
        read: gives what is in the folder to the function that reads it, and uses what that returns.
        answer: 'refused', 'accepted', or 'either' where only `read` can tell whether the input is valid.
    """

    kind: str
    name: str
    prepare: Change
    read: Change
    answer: str


@dataclasses.dataclass(frozen=True)
class Kind:
    """A class of inputs.

    Attributes:
        make: writes the valid files.
        read: as of `Input`.
        files: those that are damaged at random; the first is one that cannot do without.
        refused, either: what else is done to them.
    """

    make: Change
    read: Change
    files: tuple[str, ...]
    refused: Mapping[str, Change] = dataclasses.field(default_factory=dict)
    either: Mapping[str, Change] = dataclasses.field(default_factory=dict)
