"""The folder of a run: its config, and a JSON record of every stage that has finished.

config.json                     the config that the folder belongs to
texts.json                      a record: the digest of the texts that it began with
data.json                       a record: the share of training tokens past the original context
.lock                           locked, and names the process, while a command works on the folder
methods/METHOD/scale.json       a record: the scale vector that was solved for
methods/METHOD/before.json      a record: the evaluation before fine-tuning
methods/METHOD/checkpoints/     Orbax checkpoints of fine-tuning
methods/METHOD/metrics.jsonl    loss and speed of every training step
methods/METHOD/after.json       a record: the evaluation after fine-tuning
results.json, report.html       all records, and the page made from them; report.md is the same page
export/                         the Hugging Face folder
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rope_jax import multihost
from rope_jax.errors import InputError
from rope_jax.files import read_json, sealed, set_aside, unsealed, write_json
from rope_jax.lock import Locked, locked

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
    "methods",  # the file may move: a run compares the vectors that it gives
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

    def recorded(
        self, name: str, of: Mapping[str, str] | None = None, say: Callable[[str], None] = lambda text: None
    ) -> dict | None:
        """The record `name`; None if the stage has not finished.

        `of` are digests of what it must have been made of, as it says under `of` itself. A record of something else is
        set aside under another name, so that its stage runs again, and `say` is told why.
        """

        def find() -> list:
            record = self._read(name)
            if record is None or of is None or record.get("of") == of:
                return [record, ""]
            return [None, set_aside(self.path / f"{name}.json", record.get("of"), of)]

        record, why = multihost.from_first(find)
        if why:
            say(why)
        return record

    def record(self, name: str, make: Callable[[], Mapping[str, Any]]) -> dict:
        """The record `name`, a path without `.json`, made if the stage has not finished; as it is in the file.

        Every process calls `make`, for it may use all devices; what process 0 computes is recorded.
        """
        found = self.recorded(name)
        if found is not None:
            return found
        made = make()
        return multihost.from_first(lambda: self._written(name, made))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Creates this folder and holds it for one command, or for the processes of one run; the first one locks."""
        with contextlib.ExitStack() as held:
            if multihost.is_first():
                try:
                    held.enter_context(locked(self.path / ".lock"))
                except Locked as error:
                    raise InputError(
                        f"`folder` is {self.path}, where another command is running ({error}): wait for it, stop it, "
                        "or choose another"
                    ) from None
                except OSError as error:
                    raise self._not_writable(error) from error
            yield

    def check(
        self,
        config: Mapping[str, Any],
        may_change: tuple[str, ...] = MAY_CHANGE,
        defaults: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Creates this folder, or checks that it belongs to a config.

        Args:
            config: the fields of the command, in nested sections.
            may_change: fields, or sections of fields, that may differ.
            defaults: by dotted name, the value of a field that the folder's config does not have: it was begun by a
                version without that field.
        """
        path = self.path / "config.json"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                return
            before = read_json(path)
        except OSError as error:
            raise self._not_writable(error) from error
        except InputError:
            before = None
        if not isinstance(before, dict):
            raise InputError(f"{path} is damaged: delete it if the run has this config, or choose another folder")
        new = dict(_fields(_jsonable(config)))
        old = {**{name: value for name, value in _jsonable(defaults).items() if name in new}, **dict(_fields(before))}
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
                "another `folder`, or delete this one to start over"
            )

    def check_texts(self, digest: str) -> None:
        """Raises InputError, with `path` at fault, if this run began with texts of another digest."""
        began = self._read("texts")
        if began is not None and began["digest"] != digest:
            raise InputError(
                f"`path`: these are not the texts that the run in {self.path} began with, whatever their names: bring "
                "those back, or begin a run in another folder"
            )

    def claim(self, config: Mapping[str, Any], texts: str = "") -> None:
        """Writes the config, and the digest of the texts if there are any.

        Called once all checks have passed, so that a corrected config fits the same folder.
        """
        if multihost.is_first():
            if texts:
                self._written("texts", {"digest": texts})
            write_json(self.path / "config.json", _jsonable(config))

    def _read(self, name: str) -> dict | None:
        path = self.path / f"{name}.json"
        try:
            return unsealed(read_json(path)) if path.exists() else None
        except ValueError:
            raise InputError(
                f"{path} is damaged, or no version that this one knows wrote it: delete it, and the same command makes "
                "it again"
            ) from None

    def _written(self, name: str, value: Mapping[str, Any]) -> dict:
        write_json(self.path / f"{name}.json", sealed(value))
        return _jsonable(value)

    def _not_writable(self, error: OSError) -> InputError:
        return InputError(f"`folder` is {self.path}, which cannot be written to ({error.strerror}): choose another")


def _jsonable(value: Mapping[str, Any]) -> dict:
    """The value as a reader of its JSON file sees it: tuples become lists."""
    return json.loads(json.dumps(dict(value)))


def _fields(value: Mapping[str, Any], prefix: str = ""):
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict):
            yield from _fields(item, f"{name}.")
        else:
            yield name, item
