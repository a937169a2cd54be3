"""The PG19 benchmark (Rae et al., arXiv 1911.05507), read from a copy that TFDS prepared."""

import hashlib
import json
import os
from pathlib import Path

import tensorflow_datasets as tfds

from rope_jax.data.source import Splits
from rope_jax.errors import InputError


def open_pg19(path: str | Path) -> Splits:
    """Opens the prepared copy in sub-folder `pg19` of a TFDS data folder; the id of a book is its Gutenberg number.

    Preparing takes TensorFlow and the network; reading takes neither. An InputError for a copy that is missing or not
    in the random-access format holds the command that makes one.
    """
    root = Path(path).absolute()
    # Without a copy TFDS would return a builder that can only download.
    if not os.path.isdir(root) or not list(root.glob("pg19/*/dataset_info.json")):
        raise InputError(f"`path`: {root} has no prepared copy of PG19; {_how_to_prepare(root)}")
    builder = tfds.builder("pg19", data_dir=root)
    if not builder.is_prepared() or not builder.info.splits:
        raise InputError(f"`path`: {root} has another version of PG19 than {builder.version}; {_how_to_prepare(root)}")
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise InputError(
            f"`path`: the copy of PG19 in {root} is in the format {', '.join(sorted(formats))}, which "
            f"has no random access; {_how_to_prepare(root.with_name(root.name + '-array-record'))} "
            "and set `path` to that folder"
        )
    # Reading all books would take minutes: of each split, the sizes of its files.
    splits = {name: [split.num_bytes, *split.shard_lengths] for name, split in builder.info.splits.items()}
    digest = hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()
    return Splits(builder, f"PG19 in {root}", digest, ("book_id", "book_text"))


def _how_to_prepare(root: Path) -> str:
    # TFDS 4.9.10 imports importlib_resources when it prepares a dataset, and does not require it.
    return (
        "prepare it, on a machine with network, with `pip install -e '.[pg19]' importlib_resources && "
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('pg19', data_dir='{root}', file_format='array_record').download_and_prepare()\"`"
    )
