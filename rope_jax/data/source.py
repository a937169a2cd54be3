"""Random access to the documents of a prepared split."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

from rope_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class TextSource:
    """The documents of a split as `{"id": str, "text": str}`: a random-access data source in Grain's sense.

    `records` is a TFDS data source, of which two features become id and text.
    """

    records: Sequence[Mapping[str, Any]]
    id_field: str
    text_field: str

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[dict[str, str]]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: SupportsIndex) -> dict[str, str]:
        # `range` raises IndexError past the end, where array records raise ValueError.
        record = self.records[range(len(self))[index]]
        return {"id": _string(record[self.id_field]), "text": _string(record[self.text_field])}


class Splits(dict[str, TextSource]):
    """Split name to source, of a prepared TFDS builder whose features `fields` are id and text.

    Looking up a split that does not exist raises an InputError with those that do. `digest` tells texts apart, whatever
    the names and times of their files.
    """

    def __init__(self, builder: Any, corpus: str, digest: str, fields: tuple[str, str] = ("id", "text")):
        super().__init__({split: TextSource(builder.as_data_source(split), *fields) for split in builder.info.splits})
        self.corpus, self.digest = corpus, digest

    def __missing__(self, split: str) -> TextSource:
        raise InputError(
            f"`split` is {split!r}, and {self.corpus} has only {', '.join(self)}; "
            f"name one of these, or add a sub-folder {split!r} of text files"
        )


def _string(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
