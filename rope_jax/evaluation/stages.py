"""Measurements in stages, each kept in a file once it is done, so that an interrupted one resumes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from rope_jax.errors import InputError
from rope_jax.files import read_record, write_json


def measure_stages(
    wanted: Mapping[str, Callable[[], dict]],
    path: Path | None = None,
    of: Mapping[str, str] | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, dict]:
    """Measures the stages that a file lacks.

    Args:
        wanted: name of a stage to what gives its JSON-able record.
        path: JSON file of the stages; None keeps nothing.
        of: what is measured on; InputError if the file was measured on something else.
        progress: wraps the iterable of the stages left to do.

    Returns:
        Name to record, with its `seconds`.
    """
    of = dict(of or {})
    saved = (read_record(path) if path else None) or {"of": of, "stages": {}}
    if saved["of"] != of:
        differing = next(key for key in (*of, *saved["of"]) if saved["of"].get(key) != of.get(key))
        raise InputError(
            f"{path} was measured with {differing} = {saved['of'].get(differing)!r}, and now it is "
            f"{of.get(differing)!r}: choose another `folder`, or delete that file to measure again"
        )
    waiting = [name for name in wanted if name not in saved["stages"]]
    for name in progress(waiting) if waiting else ():
        began = time.monotonic()
        record = wanted[name]()
        saved["stages"][name] = {**record, "seconds": time.monotonic() - began}
        if path:
            write_json(path, saved)
    return {name: saved["stages"][name] for name in wanted}
