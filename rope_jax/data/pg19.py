"""The PG19 benchmark (Rae et al., arXiv 1911.05507), read from a copy that TFDS prepared."""

from __future__ import annotations

from pathlib import Path

import tensorflow_datasets as tfds

from rope_jax.data.source import Splits, TextSource
from rope_jax.errors import InputError


def open_pg19(path: str | Path) -> Splits:
    """Opens PG19. Preparing it needs TensorFlow and the network; reading the prepared copy needs neither.

    Args:
        path: TFDS data folder: the copy is below its sub-folder `pg19`.

    Returns:
        `train`, `validation` and `test`, each a source of `{"id", "text"}` with the Gutenberg number as id.

    Raises:
        InputError: if there is no copy, or none in the random-access format; the message has the command that
            makes one.
    """
    root = Path(path).absolute()
    # Looked for first, because TFDS answers a missing copy with one that can only be downloaded.
    if not list(root.glob("pg19/*/dataset_info.json")):
        raise InputError(f"config.data.path: {root} has no prepared copy of PG19; {_how_to_prepare(root)}")
    builder = tfds.builder("pg19", data_dir=root)
    if not builder.is_prepared() or not builder.info.splits:
        raise InputError(
            f"config.data.path: {root} has another version of PG19 than {builder.version}; {_how_to_prepare(root)}"
        )
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise InputError(
            f"config.data.path: the copy of PG19 in {root} is in the format {', '.join(sorted(formats))}, which "
            f"has no random access; {_how_to_prepare(root.with_name(root.name + '-array-record'))} "
            "and set config.data.path to that folder"
        )
    return Splits(
        {
            split: TextSource(builder.as_data_source(split), id_field="book_id", text_field="book_text")
            for split in builder.info.splits
        },
        f"PG19 in {root}",
    )


def _how_to_prepare(root: Path) -> str:
    # TFDS 4.9.10 imports importlib_resources when it prepares a data set, and does not require it.
    return (
        "prepare it, on a machine with network, with `pip install -e '.[pg19]' importlib_resources && "
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('pg19', data_dir='{root}', file_format='array_record').download_and_prepare()\"`"
    )
