"""Rows of LongBench-E, from the files of the official data.zip."""

from pathlib import Path
from typing import Any

from rope_jax.errors import InputError
from rope_jax.evaluation.data_files import find_file, missing_file
from rope_jax.evaluation.longbench.sets import SETS
from rope_jax.files import read_json_lines

DOWNLOAD = (
    "hf download THUDM/LongBench data.zip --repo-type dataset --local-dir {folder} && "
    "unzip -j {folder}/data.zip 'data/*_e.jsonl' -d {folder}"
)


def read_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """Reads the rows of a set from `NAME_e.jsonl` or `.jsonl.gz` in the folder or its sub-folder `data`.

    Rows have `input`, `context`, `answers`, `length`, `all_classes` and `_id`, and keep the order of the file.
    """
    if name not in SETS:
        raise InputError(f"`name` is {name!r}: use one of {', '.join(SETS)}")
    folder = Path(folder)
    path = find_file(folder, f"{name}_e.jsonl")
    if path is None:
        raise missing_file(
            folder / f"{name}_e.jsonl",
            f"the set {name} of LongBench-E (THUDM/LongBench on the Hugging Face hub)",
            DOWNLOAD.format(folder=folder),
        )
    rows, seen = [], set()
    for where, row in read_json_lines(path):
        for field in ("input", "context"):
            if not isinstance(row.get(field), str):
                raise InputError(f'{where} has no "{field}": it must be a string')
        check_row(row, where)
        row["_id"] = str(row.get("_id", len(rows)))
        if row["_id"] in seen:
            raise InputError(f'{where} has the "_id" of an earlier row, {row["_id"]}')
        seen.add(row["_id"])
        rows.append(row)
    if not rows:
        raise InputError(f"{path} has no rows: download it again")
    return rows


def check_row(row: dict[str, Any], where: str) -> None:
    """Checks the fields that scoring needs of a row in `where`, a file and line."""
    if not (_strings(row.get("answers")) and row["answers"]):
        raise InputError(f'{where} has no "answers": it must be a list of strings')
    if type(row.get("length")) is not int:
        raise InputError(f'{where} has no "length": it must be the number of words of the row, an integer')
    if row.get("all_classes") is not None and not _strings(row["all_classes"]):
        raise InputError(f'{where}: "all_classes" must be null or a list of strings')


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
