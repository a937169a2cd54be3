"""The folder of a run: its config, and a JSON record of every stage that has finished.

config.json                     the config that the folder belongs to
methods/METHOD/scale.json       a record: the scale vector that was solved for
methods/METHOD/before.json      a record: the evaluation before fine-tuning
methods/METHOD/checkpoints/     Orbax checkpoints of fine-tuning
methods/METHOD/metrics.jsonl    loss and speed of every training step
methods/METHOD/after.json       a record: the evaluation after fine-tuning
results.json, report.md         all records, and the page made from them
export/                         the Hugging Face folder
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rope_jax import multihost
from rope_jax.errors import InputError
from rope_jax.files import read_record, write_json

# Fields, or sections of fields, that may differ between two commands on one folder: finished stages stay valid.
MAY_CHANGE = (
    "compare",
    "mesh",
    "model.attention",
    "model.remat",
    "distributed",
    "debug",
    "compilation_cache",
    "plan",
)


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A folder of records. Every process of a run calls its methods; process 0 alone touches the disk."""

    path: Path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def at(self, name: str) -> RunFolder:
        return RunFolder(self.path / name)

    def has(self, name: str) -> bool:
        return multihost.from_first((self.path / name).exists)

    def recorded(self, name: str) -> dict | None:
        """The record `name`; None if the stage has not finished."""
        return multihost.from_first(lambda: read_record(self.path / f"{name}.json"))

    def record(self, name: str, make: Callable[[], Mapping[str, Any]]) -> dict:
        """The record `name`, made and written if the stage has not finished; as it stands in the file.

        Args:
            name: path of the record in this folder, without `.json`.
            make: computes the JSON-able record. Called in every process, for it may use all devices; what process 0
                computes is recorded.

        Raises:
            InputError: if the record is damaged, naming the file.
        """
        found = self.recorded(name)
        if found is not None:
            return found
        made = make()
        return multihost.from_first(lambda: self._written(name, made))

    def check(self, config: Mapping[str, Any], may_change: tuple[str, ...] = MAY_CHANGE) -> None:
        """Creates this folder, or checks that it belongs to a config but for fields, or sections, in `may_change`.

        Raises:
            InputError: if the folder belongs to another config, with the first field that differs as `field`; or if
                it cannot be created.
        """
        try:
            before = read_record(self.path / "config.json")
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"`folder` is {self.path}, which cannot be written to ({error.strerror}): choose another",
                field="folder",
            ) from error
        if before is None:
            return
        old, new = dict(_fields(before)), dict(_fields(_jsonable(config)))
        differing = [
            field
            for field in sorted(old.keys() | new.keys())
            if old.get(field) != new.get(field) and not {field, field.split(".")[0]} & set(may_change)
        ]
        if differing:
            field = differing[0]
            more = f" (and {', '.join(f'`{name}`' for name in differing[1:])})" if differing[1:] else ""
            raise InputError(
                f"`{field}` is {new.get(field)!r}, but the run in {self.path} has {old.get(field)!r}{more}: choose "
                "another `folder`, or delete this one to start over",
                field=field,
            )

    def claim(self, config: Mapping[str, Any]) -> None:
        """Writes the config. Called once all checks have passed, so that a corrected config fits the same folder."""
        if multihost.is_first():
            write_json(self.path / "config.json", _jsonable(config))

    def _written(self, name: str, value: Mapping[str, Any]) -> dict:
        write_json(self.path / f"{name}.json", value)
        return _jsonable(value)


def _jsonable(value: Mapping[str, Any]) -> dict:
    """The value as a reader of its JSON file sees it: tuples become lists."""
    return json.loads(json.dumps(value))


def _fields(value: Mapping[str, Any], prefix: str = ""):
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict):
            yield from _fields(item, f"{name}.")
        else:
            yield name, item
