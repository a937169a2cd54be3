"""From an argument that the library names in an error to the config field that a user knows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from rope_jax.errors import InputError


@contextlib.contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Renames arguments in the errors of a block to config fields."""
    try:
        yield
    except InputError as error:
        raise error.renamed(names) from error.__cause__
