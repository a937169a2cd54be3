"""The records of a study as lines of a table."""

from collections.abc import Iterator
from typing import Any

from rope_jax.runs.folder import RunFolder
from rope_jax.study.design import LEARNED, STAGES, Design


def table_lines(folder: RunFolder, design: Design) -> Iterator[dict[str, Any]]:
    """All records that exist, of kind 'vector', 'model' and 'measured'."""
    places = dict.fromkeys((context, s) for _, context, _ in design.models for s in design.extensions)
    for context, extension in places:
        about = {"kind": "vector", "context": context, "extension": extension}
        for name, record in _records(folder.at(f"vectors/{context}-{extension}")):
            yield {**about, "vector": name, **record}
    for setup in design.setups():
        record = folder.recorded(f"{setup.folder}/pretraining")
        about = {"shape": str(setup.shape), "context": setup.context, "seed": setup.seed}
        if record is None:
            continue
        yield {"kind": "model", **about, **record, **(folder.recorded(f"{setup.folder}/usage") or {})}
        for extension in design.extensions:
            place = folder.at(f"{setup.folder}/{extension}")
            where = {**about, "extension": extension}
            learned = place.recorded(LEARNED)
            if learned is not None:
                yield {"kind": "vector", **where, "vector": LEARNED, **learned}
            for stage in STAGES:
                for name, record in _records(place.at(stage)):
                    yield {"kind": "measured", **where, "stage": stage, "vector": name, **record}


def _records(folder: RunFolder) -> Iterator[tuple[str, dict]]:
    for path in sorted(folder.path.glob("*.json")):
        record = folder.recorded(path.stem)
        if record is not None:
            yield path.stem, record
