"""Folders of texts, and prepared copies of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

from rope_jax.data.corpus import open_corpus
from tests.fuzz.damage import Change
from tests.fuzz.inputs.kinds import TEXT, Kind
from tests.fuzz.inputs.models import content


def write_texts(folder: Path) -> None:
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text(TEXT * 3)
    (folder / "texts" / "b.jsonl").write_text(json.dumps({"text": TEXT}) + "\n" + json.dumps({"text": "b"}) + "\n")
    with gzip.open(folder / "texts" / "c.txt.gz", "wt") as file:
        file.write(TEXT)


def use_texts(folder: Path) -> None:
    """Prepared, and read from the prepared copy."""
    for _ in range(2):
        splits = open_corpus("text_folder", folder / "texts", folder / "cache")
        for source in splits.values():
            for i in range(len(source)):
                source[i]["text"].encode()


def prepared_and(change: Change) -> Change:
    """A change of what a corpus was prepared as."""

    def prepare(folder: Path) -> None:
        use_texts(folder)
        change(next((folder / "cache").glob("text_folder-*")))

    return prepare


def each_file(action: Callable[[Path], object], pattern: str = "*") -> Change:
    return lambda place: [action(path) for path in sorted(place.rglob(pattern)) if path.is_file()]


CORPORA = Kind(
    write_texts,
    use_texts,
    ("texts/b.jsonl", "texts/a.txt", "texts/c.txt.gz"),
    refused={
        "no text": lambda folder: [path.unlink() for path in (folder / "texts").iterdir()],
        "a link out": lambda folder: (folder / "texts" / "d.txt").symlink_to("../../outside/secret"),
        "a folder that is a link": lambda folder: (folder / "texts" / "d").symlink_to("../../outside"),
        "deep nesting": content("texts/b.jsonl", '{"text":' * 100_000),
        "5000 digits": content("texts/b.jsonl", "1" * 5000),
        "surrogates": content("texts/b.jsonl", '{"text": "\\ud800"}'),
        "Latin-1": content("texts/a.txt", "caf\u00e9".encode("latin-1")),
    },
    either={
        "a bomb": lambda folder: (folder / "texts" / "c.txt.gz").write_bytes(gzip.compress(b"a" * (300 << 20), 1)),
        "one character": lambda folder: [
            (folder / "texts" / "b.jsonl").unlink(),
            (folder / "texts" / "c.txt.gz").unlink(),
            (folder / "texts" / "a.txt").write_text("a"),
        ],
        "a prepared copy of nothing": prepared_and(each_file(lambda path: path.write_bytes(b""))),
        "a prepared copy without dataset_info": prepared_and(each_file(Path.unlink, "dataset_info.json")),
        "a prepared copy with another dataset_info": prepared_and(
            each_file(lambda path: path.write_text("[" * 9999), "dataset_info.json")
        ),
        "a shard gone": prepared_and(each_file(Path.unlink, "*array_record*")),
        "a shard cut": prepared_and(each_file(lambda path: path.write_bytes(path.read_bytes()[:50]), "*array_record*")),
    },
)
