"""Config fields by name: their values, and the arguments of the library that they set."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from rope_jax.commands.fields import FIELDS
from rope_jax.errors import InputError


def _names(section: str) -> dict[str, str]:
    """Arguments of a section's fields; the empty section is all fields, of which the first of a name wins."""
    inside = [field.name for field in FIELDS if field.name.startswith(section and f"{section}.")]
    return {name.rpartition(".")[2]: f"config.{name}" for name in reversed(inside)}


# Arguments of the library as a user knows them.
NAMES = {
    **_names(""),
    **_names("train"),
    **{field.name: f"config.{field.name}" for field in FIELDS},
    "folder": "--workdir",
    "chunk": "config.train.loss_chunk",
    "own": "config.model.path",
    "batch": "config.eval.batch",
    "data": "config.mesh.data",
}


@contextlib.contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Renames arguments in the errors of a block to config fields."""
    try:
        yield
    except InputError as error:
        raise error.renamed(names) from error.__cause__


def config_names() -> contextlib.AbstractContextManager[None]:
    """Renames arguments in the errors of a block as `NAMES` has them."""
    return renamed(NAMES)


def section(name: str, **names: str) -> contextlib.AbstractContextManager[None]:
    """Renames arguments in the errors of a block to the fields of a section, such as 'train', and to further ones."""
    return renamed(_names(name) | names)


@contextlib.contextmanager
def reading(name: str, /, **names: str) -> Iterator[None]:
    """Renames arguments in the errors of a block that reads what the field `name` names.

    An error without an argument, which names a file, is at the fault of that field.
    """
    field = f"config.{name}"
    try:
        yield
    except InputError as error:
        error = error.renamed({"path": field, "folder": field} | names)
        if not error.field:
            error = InputError(str(error) if field in str(error) else f"{field}: {error}", field)
        raise error from error.__cause__


def value(config: ConfigDict, name: str) -> Any:
    """The value of a field such as 'train.steps'; sequences are tuples."""
    found: Any = config
    for part in name.split("."):
        found = found[part]
    return tuple(found) if isinstance(found, list | tuple) else found
