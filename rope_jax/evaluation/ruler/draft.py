"""A prompt whose filler can still grow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator


@dataclasses.dataclass(frozen=True)
class Draft:
    """A question with its answers, for a number of units of filler that is still open.

    Attributes:
        build: the prompt with that many units; the same prompt each time.
        references: the answers, whatever the number of units.
        least: fewest units.
        most: most units; None for no limit.
        refine: from the number of units that fits and the tokens then left over to prompts that may leave fewer,
            the most promising ones first.
    """

    build: Callable[[int], str]
    references: tuple[str, ...]
    least: int
    most: int | None = None
    refine: Callable[[int, int], Iterator[str]] | None = None
