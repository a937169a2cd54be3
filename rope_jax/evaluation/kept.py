"""What was measured, kept record by record in a file, so that an evaluation can stop at any moment."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rope_jax.errors import InputError
from rope_jax.files import LONGEST_LINE, check_regular, read_json_lines, set_aside, write_text


@dataclasses.dataclass(frozen=True)
class Kept:
    """A file of JSON lines: first what its records depend on, then a record per line under its own `id`.

    Attributes:
        path: the file; None keeps nothing.
        of: what the records depend on, such as 'vector', to its digest.
        say: told when records cannot be used, and why.
    """

    path: Path | None = None
    of: Mapping[str, str] = dataclasses.field(default_factory=dict)
    say: Callable[[str], None] = lambda text: None

    def read(self) -> dict[str, dict[str, Any]]:
        """The records of an earlier attempt by id.

        A last line cut short by a crash is removed from the file. A file of something else is set aside under another
        name, so that everything is measured anew. InputError for a damaged or repeated record.
        """
        if self.path is None or not self.path.exists():
            return {}
        check_regular(self.path)
        _remove_torn_line(self.path)
        try:
            lines = list(read_json_lines(self.path))
        except InputError as error:
            reason = str(error).removesuffix(": download it again")
            raise InputError(f"{reason}: delete that line, or choose another `folder`") from None
        if not lines:
            return {}
        of = lines[0][1].get("of", {})
        if of != self.of:
            self.say(set_aside(self.path, of, self.of))
            return {}
        found: dict[str, dict[str, Any]] = {}
        for place, record in lines[1:]:
            name = record.pop("id", None)
            if not isinstance(name, str):
                raise InputError(f"{place} is damaged, it has no id: delete that line, or choose another `folder`")
            if name in found:
                raise InputError(f"{place} is a second record of {name}: delete one of them")
            found[name] = record
        return found

    def append(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Appends records, and returns when they are on the disk."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(self._text(records, header=file.tell() == 0))
            file.flush()
            os.fsync(file.fileno())

    def replace(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Makes these the only records."""
        if self.path is not None:
            write_text(self.path, self._text(records, header=True))

    def _text(self, records: Mapping[str, Mapping[str, Any]], header: bool) -> str:
        lines = [{"of": dict(self.of)}] * header + [{"id": name, **record} for name, record in records.items()]
        return "".join(json.dumps(line) + "\n" for line in lines)


def _remove_torn_line(path: Path) -> None:
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, end - LONGEST_LINE))
        whole = start + file.read().rfind(b"\n") + 1
        # What is longer than any line was not cut short by a crash, and is left for the reader to name.
        if whole < end and (whole > start or not start):
            file.truncate(whole)
