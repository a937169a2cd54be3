"""Text corpora as random-access sources, prepared once as TFDS array records and read without TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
import tqdm

from rope_jax.data import pg19, stdlib, text_files
from rope_jax.data.source import Splits, TextSource
from rope_jax.data.text_files import Document
from rope_jax.errors import InputError

NAMES = ("text_folder", "python_stdlib", "pg19")
SPLITS = ("train", "validation", "test")
VALIDATION_SHARE = 0.1

# Part of the key of a prepared copy: raise it when the same files give other documents or other splits.
_FORMAT = 1
# TFDS keeps a shard's documents in memory while it writes the shard.
_SHARD_BYTES = 64 << 20

ReadFn = Callable[[], Iterator[Document]]


def open_corpus(name: str, path: str | Path, cache_dir: str | Path) -> Mapping[str, TextSource]:
    """Opens a corpus; prepares it first if `cache_dir` has no complete copy of the present content.

    `text_folder`: the `.txt`, `.txt.gz`, `.jsonl` and `.jsonl.gz` files below `path`. Sub-folders `train`,
    `validation` and `test` become the splits. Without them, the tenth of the documents whose ids hash lowest
    (at least one) is held out as `validation` and the rest is `train`; of a single document, the last tenth of
    the characters is held out. `python_stdlib`: this Python's own library sources, held out from alike.
    `pg19`: a copy that TFDS prepared under `path`.

    Args:
        name: one of `NAMES`.
        path: the corpus' folder; ignored for `python_stdlib`.
        cache_dir: where prepared copies are kept, each in a folder named after its content. Ignored for `pg19`.

    Returns:
        Split name to a random-access source of `{"id": str, "text": str}`, in document order.

    Raises:
        InputError: if the folder, a file in it or the prepared copy is unusable, or if a split that does not
            exist is looked up in what is returned.
    """
    if name in ("text_folder", "pg19") and not str(path):
        # An empty path would mean the working directory.
        raise InputError(f"config.data.path is empty: name the folder of the {name} corpus")
    if name == "pg19":
        return pg19.open_pg19(path)
    if name == "text_folder":
        root, groups = _text_folder_splits(Path(path))
        read, what = text_files.read_documents, str(path)
    elif name == "python_stdlib":
        root, files = stdlib.list_sources()
        groups = {None: files}
        read, what = stdlib.read_sources, "the Python standard library"
    else:
        raise InputError(f"config.data.name is {name!r}: it must be one of {', '.join(NAMES)}")

    data_dir = Path(cache_dir) / f"{name}-{_fingerprint(root, groups)}"
    builder = TextCorpus(data_dir=data_dir)
    if not _is_complete(builder):
        readers = {split: functools.partial(read, root, files) for split, files in groups.items()}
        builder = _prepare(_plan(readers, what), data_dir)
    return Splits({split: TextSource(builder.as_data_source(split)) for split in builder.info.splits}, what)


@dataclasses.dataclass(frozen=True)
class SplitPlan:
    """What a split's preparation writes.

    Attributes:
        read: gives the split's documents, in order.
        shards: number of documents in each shard.
    """

    read: ReadFn
    shards: tuple[int, ...]


class TextCorpus(tfds.core.ShardBasedBuilder):
    """TFDS builder of documents `{"id", "text"}`.

    Shard-based, because a `GeneratorBasedBuilder` sorts its examples, and for a split above 1 GB it does so in
    files that it opens through TensorFlow. Here documents stream to the shards in their own order.

    Attributes:
        plans: split name to plan; needed to prepare, not to read.
    """

    VERSION = tfds.core.Version("1.0.0")
    # No downloads, no checksums. (Without this TFDS 4.9.10 looks for them with a package that it does not require.)
    url_infos = None

    def __init__(self, *, data_dir: Path, plans: Mapping[str, SplitPlan] | None = None):
        self.plans = plans
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"id": tfds.features.Text(), "text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Callable[[], Iterator[tuple[int, Any]]]]]:
        del dl_manager  # Nothing is downloaded.
        return {split: _shard_iterators(split, plan) for split, plan in self.plans.items()}

    # TFDS announces on standard output each dataset that it prepares; a progress bar for long ones is enough.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass


def _text_folder_splits(root: Path) -> tuple[Path, dict[str | None, tuple[Path, ...]]]:
    """The folder and its files by split, or under None where its layout names no splits."""
    endings = ", ".join(text_files.ENDINGS)
    if not root.exists():
        raise InputError(f"config.data.path: {root} does not exist; name a folder of {endings} files")
    if not root.is_dir():
        raise InputError(f"config.data.path: {root} is not a folder; name the folder that holds it")
    root = root.resolve()
    files = text_files.list_text_files(root)
    if not files:
        raise InputError(f"config.data.path: {root} holds no file ending in {endings}; add some")
    tops = [path.relative_to(root).parts for path in files]
    if not any(len(parts) > 1 and parts[0] in SPLITS for parts in tops):
        return root, {None: files}
    groups: dict[str | None, tuple[Path, ...]] = {}
    for split in SPLITS:
        group = tuple(path for path, parts in zip(files, tops) if len(parts) > 1 and parts[0] == split)
        if group:
            groups[split] = group
    outside = sorted(set(files) - {path for group in groups.values() for path in group})
    if outside:
        raise InputError(
            f"config.data.path: {root} has the splits {', '.join(groups)}, and {outside[0]} is in none of "
            "them; move it into one or out of the folder"
        )
    return root, groups


def _fingerprint(root: Path, groups: Mapping[str | None, Sequence[Path]]) -> str:
    """Changes when a file is added, removed, renamed or written; reads no content, so that opening is quick."""
    entries = [
        [split, path.relative_to(root).as_posix(), path.stat().st_size, path.stat().st_mtime_ns]
        for split, files in groups.items()
        for path in files
    ]
    content = json.dumps([_FORMAT, VALIDATION_SHARE, entries], ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _plan(readers: Mapping[str | None, ReadFn], what: str) -> dict[str, SplitPlan]:
    """Reads all documents once, so that every error in them is raised before anything is written."""
    plans = {}
    for split, read in readers.items():
        sizes = [(document.id, len(document.text.encode())) for document in _progress(read(), "Checking")]
        if not sizes:
            raise InputError(
                f"config.data.path: {what} has no text{f' in {split}' if split else ''}, only whitespace; add some"
            )
        if split:
            plans[split] = SplitPlan(read, _shards([size for _, size in sizes]))
        else:
            plans |= _hold_out(read, sizes, what)
    return plans


def _hold_out(read: ReadFn, sizes: Sequence[tuple[str, int]], what: str) -> dict[str, SplitPlan]:
    """Divides documents into `train` and `validation` as `open_corpus` says."""
    if len(sizes) == 1:
        if len(next(read()).text) < 2:
            raise InputError(f"config.data.path: {what} is a single character; add text")
        return {
            "train": SplitPlan(functools.partial(_part_of_one, read, False), (1,)),
            "validation": SplitPlan(functools.partial(_part_of_one, read, True), (1,)),
        }
    order = sorted(range(len(sizes)), key=lambda i: (hashlib.sha256(sizes[i][0].encode()).digest(), i))
    held_out = frozenset(order[: max(1, round(VALIDATION_SHARE * len(sizes)))])
    return {
        split: SplitPlan(
            functools.partial(_selected, read, held_out, inside),
            _shards([size for i, (_, size) in enumerate(sizes) if (i in held_out) == inside]),
        )
        for split, inside in (("train", False), ("validation", True))
    }


def _selected(read: ReadFn, held_out: frozenset[int], inside: bool) -> Iterator[Document]:
    return (document for i, document in enumerate(read()) if (i in held_out) == inside)


def _part_of_one(read: ReadFn, last: bool) -> Iterator[Document]:
    for document in read():
        length = len(document.text)
        cut = min(max(1, round((1 - VALIDATION_SHARE) * length)), length - 1)
        yield Document(document.id, document.text[cut:] if last else document.text[:cut])


def _shards(sizes: Sequence[int]) -> tuple[int, ...]:
    """Numbers of consecutive documents that together reach `_SHARD_BYTES`."""
    shards, documents, size = [], 0, 0
    for document in sizes:
        documents, size = documents + 1, size + document
        if size >= _SHARD_BYTES:
            shards.append(documents)
            documents, size = 0, 0
    return (*shards, documents) if documents else tuple(shards)


def _shard_iterators(split: str, plan: SplitPlan) -> list[Callable[[], Iterator[tuple[int, dict[str, str]]]]]:
    """One iterator per shard, all drawing on one stream: TFDS writes shards one after the other."""
    documents = _progress(plan.read(), f"Preparing {split}", sum(plan.shards))
    stream = enumerate({"id": document.id, "text": document.text} for document in documents)
    return [functools.partial(itertools.islice, stream, count) for count in plan.shards]


def _progress(documents: Iterator[Document], what: str, total: int | None = None) -> Iterator[Document]:
    # Shown only to those who wait.
    return tqdm.tqdm(documents, desc=what, total=total, unit=" documents", delay=3.0, leave=False)


def _is_complete(builder: TextCorpus) -> bool:
    # TFDS writes to a temporary folder and renames it in the end, after `dataset_info.json` was written.
    return (builder.data_path / "dataset_info.json").exists()


def _prepare(plans: Mapping[str, SplitPlan], data_dir: Path) -> TextCorpus:
    builder = TextCorpus(data_dir=data_dir, plans=plans)
    if builder.data_path.exists() and not _is_complete(builder):
        # Not TFDS's doing: somebody deleted a part. TFDS would take the folder for a prepared copy.
        shutil.rmtree(builder.data_path)
    # Without `try_download_gcs=False` TFDS may look for a prepared copy on the network.
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        builder.download_and_prepare(file_format="array_record", download_config=config)
    except OSError:
        # Several processes may prepare the same corpus: the first rename wins, the others use its result.
        if not _is_complete(builder):
            raise
    return TextCorpus(data_dir=data_dir)
