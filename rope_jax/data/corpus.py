"""Text corpora as random-access sources, prepared once as TFDS array records and read without TensorFlow."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from rope_jax.data import pg19, stdlib, text_files
from rope_jax.data.source import Splits
from rope_jax.data.text_files import Document
from rope_jax.errors import InputError
from rope_jax.files import read_json, sealed, unsealed, write_json
from rope_jax.lock import locked
from rope_jax.progress import bar

NAMES = ("text_folder", "python_stdlib", "pg19")
SPLITS = ("train", "validation", "test")
VALIDATION_SHARE = 0.1

# Part of a prepared copy's key. Raise it when the same files give other documents or other splits.
_FORMAT = 1
# TFDS holds the documents of a shard in memory while it writes the shard.
_SHARD_BYTES = 64 << 20
# Of a prepared copy, written last.
_CONTENTS = "contents.json"

Documents = Callable[[], Iterator[Document]]


def open_corpus(name: str, path: str | Path, cache_dir: str | Path) -> Splits:
    """Opens a corpus. Prepares it first if `cache_dir` has no complete and intact copy of the present content.

    `text_folder` is the text and JSON-lines files below `path`. Sub-folders `train`, `validation` and `test` become the
    splits. Without them, the tenth of the documents with the lowest hash of the id (at least one) becomes `validation`
    and the rest `train`; a single document is split after nine tenths of its characters. `python_stdlib` is the sources
    of the running Python's standard library, split by hash. `pg19` is a copy that TFDS prepared below `path`.

    Args:
        name: one of `NAMES`.
        path: folder of the corpus; ignored for `python_stdlib`.
        cache_dir: holds prepared copies, each in a folder named after its content; ignored for `pg19`.
    """
    if name in ("text_folder", "pg19") and not str(path):  # an empty path would be the working directory
        raise InputError(f"`path` is empty: name the folder of the {name} corpus")
    if name == "pg19":
        return pg19.open_pg19(path)
    groups: dict[str | None, tuple[Path, ...]]
    if name == "text_folder":
        root, groups = _text_folder_splits(Path(path))
        read, title = text_files.read_documents, str(path)
    elif name == "python_stdlib":
        root, files = stdlib.list_sources()
        groups = {None: files}
        read, title = stdlib.read_sources, "the Python standard library"
    else:
        raise InputError(f"`name` is {name!r}: it must be one of {', '.join(NAMES)}")

    data_dir = Path(cache_dir) / f"{name}-{_fingerprint(root, groups)}"
    digest = _prepared_digest(data_dir)
    if not digest:
        documents = {split: functools.partial(read, root, files) for split, files in groups.items()}
        plans, digest = _plan(documents, title)
        with locked(data_dir.with_name(f".{data_dir.name}.lock"), wait=True):
            if not _prepared_digest(data_dir):  # another process may have made it meanwhile
                _prepare(plans, data_dir, digest)
    return Splits(TextCorpus(data_dir=data_dir), title, digest)


@dataclasses.dataclass(frozen=True)
class SplitPlan:
    """The documents of a split, in order, and how many of them each shard holds."""

    documents: Documents
    shards: tuple[int, ...]


class TextCorpus(tfds.core.ShardBasedBuilder):
    """TFDS builder of documents `{"id", "text"}`.

    A `GeneratorBasedBuilder` would sort its examples, above 1 GB in files that it opens through TensorFlow. Shards
    take the documents in their own order. `plans` by split are needed to prepare, not to read.
    """

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded. Without this line TFDS 4.9.10 looks for checksums with a package that it does not require.
    url_infos = None

    def __init__(self, *, data_dir: Path, plans: Mapping[str, SplitPlan] | None = None):
        self.plans = plans or {}
        super().__init__(data_dir=data_dir)

    # TFDS documents this method and the next one, underscore included, as those a builder defines.
    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"id": tfds.features.Text(), "text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator[tuple[int, Any]]]]]:
        return {split: _shard_iterators(split, plan) for split, plan in self.plans.items()}


def _text_folder_splits(path: Path) -> tuple[Path, dict[str | None, tuple[Path, ...]]]:
    """The folder, and its files by split; by None if it names no splits."""
    endings = ", ".join(text_files.ENDINGS)
    if not os.path.exists(path):
        raise InputError(f"`path`: {path} does not exist; name a folder of {endings} files")
    if not os.path.isdir(path):
        raise InputError(f"`path`: {path} is not a folder; name the folder that holds it")
    root = path.resolve()
    groups: dict[str | None, list[Path]] = {}
    for file in text_files.list_text_files(root):
        top, *rest = file.relative_to(root).parts
        groups.setdefault(top if rest and top in SPLITS else None, []).append(file)
    if not groups:
        raise InputError(f"`path`: {root} holds no file ending in {endings}; add some")
    named = [split for split in SPLITS if split in groups]
    if named and None in groups:
        raise InputError(
            f"{root} has the splits {', '.join(named)}, and {groups[None][0]} is in none of them; move it into one or "
            "out of the folder"
        )
    return root, {split: tuple(groups[split]) for split in named or (None,)}


def _fingerprint(root: Path, groups: Mapping[str | None, tuple[Path, ...]]) -> str:
    """Changes when a file is added, removed, renamed or written. Opening stays quick: it reads no content."""
    entries = [
        [split, path.relative_to(root).as_posix(), path.stat().st_size, path.stat().st_mtime_ns]
        for split, files in groups.items()
        for path in files
    ]
    content = json.dumps([_FORMAT, VALIDATION_SHARE, entries], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _plan(documents: Mapping[str | None, Documents], title: str) -> tuple[dict[str, SplitPlan], str]:
    """Reads all documents once, so that every error in them is raised before anything is written; and their digest."""
    plans, digest = {}, hashlib.sha256()
    for split, read in documents.items():
        sizes = []
        for document in _progress(read(), "Checking"):
            data = document.text.encode()
            sizes.append((document.id, len(data)))
            digest.update(json.dumps([split, document.id, len(data)]).encode() + data)
        if not sizes:
            place = f" in {split}" if split else ""
            raise InputError(f"`path`: {title} has no text{place}, only whitespace; add some")
        parts = {split: range(len(sizes))} if split else _held_out([name for name, _ in sizes])
        if parts is None:
            plans = {part: SplitPlan(functools.partial(_part_of_one, read, title, part), (1,)) for part in SPLITS[:2]}
            next(plans["validation"].documents())
        else:
            for part, numbers in parts.items():
                shards = _shards([size for number, (_, size) in enumerate(sizes) if number in numbers])
                plans[part] = SplitPlan(functools.partial(_selected, read, numbers), shards)
    return plans, digest.hexdigest()


def _held_out(ids: Sequence[str]) -> dict[str, Container[int]] | None:
    """Numbers of the documents of `train` and `validation`; None for a single document."""
    if len(ids) == 1:
        return None
    order = sorted(range(len(ids)), key=lambda i: (hashlib.sha256(ids[i].encode()).digest(), i))
    count = max(1, round(VALIDATION_SHARE * len(ids)))
    return {"train": frozenset(order[count:]), "validation": frozenset(order[:count])}


def _selected(read: Documents, numbers: Container[int]) -> Iterator[Document]:
    return (document for number, document in enumerate(read()) if number in numbers)


def _part_of_one(read: Documents, title: str, part: str) -> Iterator[Document]:
    for document in read():
        length = len(document.text)
        if length < 2:
            raise InputError(f"`path`: {title} is a single character; add text")
        cut = min(max(1, round((1 - VALIDATION_SHARE) * length)), length - 1)
        yield Document(document.id, document.text[cut:] if part == "validation" else document.text[:cut])


def _shards(sizes: Sequence[int]) -> tuple[int, ...]:
    """Numbers of consecutive documents that end within the same `_SHARD_BYTES`."""
    return tuple(Counter(end // _SHARD_BYTES for end in itertools.accumulate(sizes)).values())


def _shard_iterators(split: str, plan: SplitPlan) -> list[Callable[[], Iterator[tuple[int, dict[str, str]]]]]:
    """One iterator per shard, all drawing on one stream: TFDS writes shards one after the other."""
    documents = _progress(plan.documents(), f"Preparing {split}", sum(plan.shards))
    stream = enumerate({"id": document.id, "text": document.text} for document in documents)
    return [functools.partial(itertools.islice, stream, count) for count in plan.shards]


def _progress(documents: Iterator[Document], title: str, total: int | None = None) -> Iterator[Document]:
    """A progress bar, after the first three seconds."""
    return iter(bar(title, documents, total=total, unit=" documents", delay=3.0, leave=False))


def _prepared_digest(data_dir: Path) -> str:
    """Digest of the texts in a prepared copy; empty if it is incomplete or damaged."""
    try:
        contents = unsealed(read_json(data_dir / _CONTENTS))
    except ValueError:
        return ""
    return contents["digest"] if contents["files"] == _listed(data_dir) else ""


def _listed(data_dir: Path) -> dict[str, int | str]:
    """The files of a prepared copy with their sizes, or, of the small ones that describe it, their digests."""
    folder = data_dir / TextCorpus.name / str(TextCorpus.VERSION)
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix == ".json" else path.stat().st_size
        for path in sorted(folder.glob("*"))
        if path.is_file()
    }


def _prepare(plans: Mapping[str, SplitPlan], data_dir: Path, digest: str) -> None:
    # TFDS would take what is left of a damaged copy for a prepared one.
    shutil.rmtree(data_dir, ignore_errors=True)
    builder = TextCorpus(data_dir=data_dir, plans=plans)
    # Without `try_download_gcs=False` TFDS may look for a prepared copy on the network.
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    # TFDS prints an announcement of every dataset that it prepares.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(file_format="array_record", download_config=config)
    write_json(data_dir / _CONTENTS, sealed({"digest": digest, "files": _listed(data_dir)}))
