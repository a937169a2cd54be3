"""Random access to the documents of a prepared split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

from rope_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class TextSource:
    """A split's documents as `{"id": str, "text": str}`; what Grain calls a random-access data source.

    Attributes:
        records: TFDS data source, a sequence of feature dictionaries.
        id_field: feature that becomes `id`.
        text_field: feature that becomes `text`.
    """

    records: Sequence[Mapping[str, Any]]
    id_field: str = "id"
    text_field: str = "text"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: SupportsIndex) -> dict[str, str]:
        # Through `range`, because array records raise ValueError past the end, which no `for` loop understands.
        record = self.records[range(len(self))[index]]
        return {"id": _string(record[self.id_field]), "text": _string(record[self.text_field])}


class Splits(dict[str, TextSource]):
    """Split name to source; looking up a split that does not exist says which do."""

    def __init__(self, sources: Mapping[str, TextSource], corpus: str):
        super().__init__(sources)
        self.corpus = corpus

    def __missing__(self, split: str) -> TextSource:
        raise InputError(
            f"config.data.path: {self.corpus} has no split {split!r}, only {', '.join(self)}; "
            f"name one of these, or add a sub-folder {split!r} of text files"
        )


def _string(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
