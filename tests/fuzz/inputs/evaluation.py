"""Predictions, scored files and the files of benchmarks."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

from rope_jax.evaluation.answering import read_predictions
from rope_jax.evaluation.babilong.stories import read_stories
from rope_jax.evaluation.haystack import read_haystack
from rope_jax.evaluation.kept import Kept
from rope_jax.evaluation.longbench.rows import read_rows
from rope_jax.evaluation.longbench.scoring import read_scored
from rope_jax.evaluation.many_shot import read_examples
from rope_jax.evaluation.ruler.questions import read_hotpotqa, read_squad
from tests.fuzz.damage import VALUES, Change, with_value
from tests.fuzz.inputs.kinds import Kind
from tests.fuzz.inputs.models import content

OF = {"vector": "1", "weights": "2"}
ROW = {"digest": "d", "prediction": "text", "score": 0.5, "seconds": 0.1}
KEPT = "qasper.jsonl"


def write_kept(folder: Path) -> None:
    Kept(folder / KEPT, OF).append({"a": ROW, "b": ROW})


def use_kept(folder: Path) -> None:
    rows = read_predictions(Kept(folder / KEPT, OF), {"a": "d", "b": "d"})
    for row in rows.values():
        row.prediction.encode()
        assert 0 <= row.score <= 1 and 0 <= row.seconds < math.inf


def second_line(line: bytes | str) -> Change:
    def change(folder: Path) -> None:
        with (folder / KEPT).open("ab") as file:
            file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")

    return change


def _row(key: str, text: str) -> str:
    return with_value({"id": "c", **ROW}, (key,), text)


_NO_SCORE = ["null", "true", "minus one", "1.5", "NaN", "1e300", "1e400", "a number as a string", "5000 digits", "7"]
PREDICTIONS = Kind(
    write_kept,
    use_kept,
    (KEPT,),
    refused={
        **{f"a score of {name}": second_line(_row("score", VALUES.get(name, name))) for name in _NO_SCORE},
        **{
            f"a prediction is {name}": second_line(_row("prediction", VALUES[name]))
            for name in ("null", "zero", "a lone surrogate", "an empty list", "5000 levels")
        },
        **{
            f"an id is {name}": second_line(_row("id", VALUES[name]))
            for name in ("null", "zero", "an empty list", "a lone surrogate")
        },
        "an id twice": second_line(json.dumps({"id": "a", **ROW})),
        "seconds without end": second_line(_row("seconds", "Infinity")),
        "17 MB in a line": second_line(_row("prediction", json.dumps("x" * (17 << 20)))),
        "250 MB of brackets": second_line(b"[" * (250 << 20)),
        "not UTF-8": second_line(b'{"id": "\xff"}'),
        "a list": second_line("[]"),
    },
)


def write_scored(folder: Path) -> None:
    row = {"pred": "a", "answers": ["a"], "all_classes": None, "length": 10}
    with gzip.open(folder / "qasper.jsonl.gz", "wt") as file:
        file.write(json.dumps(row) + "\n")
    (folder / "trec.jsonl").write_text(json.dumps(row | {"all_classes": ["a", "b"]}) + "\n")


def zipped(data: bytes) -> Change:
    return lambda folder: (folder / "qasper.jsonl.gz").write_bytes(gzip.compress(data, 1))


SCORED = Kind(
    write_scored,
    lambda folder: [0 <= row.score <= 1 or math.nan for rows in read_scored(folder).values() for row in rows],
    ("trec.jsonl", "qasper.jsonl.gz"),
    refused={
        "250 MB of [] zipped": zipped(b"[]" * (125 << 20)),
        "250 MB of lists": zipped(b'{"a": [' + b"[]," * (5 << 20) + b"[]]}\n"),
        "a gigabyte of blanks": zipped(b" " * (1 << 28)),
        "deep nesting": zipped(b'{"a":' * 10**6),
        "no zip": content("qasper.jsonl.gz", "text"),
        "another set": content("other.jsonl", "{}"),
        "one set twice": content("qasper.jsonl", "{}"),
        "answers of numbers": content("trec.jsonl", '{"pred": "a", "answers": [1], "length": 1}'),
        "a length of 1.5": content("trec.jsonl", '{"pred": "a", "answers": ["a"], "length": 1.5}'),
        "surrogates": content("trec.jsonl", '{"pred": "\\ud800", "answers": ["a"], "length": 1}'),
    },
)


def write_benchmarks(folder: Path) -> None:
    row = {"input": "q", "context": "c", "answers": ["a"], "all_classes": None, "length": 10, "_id": "1"}
    (folder / "qasper_e.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "train.jsonl").write_text('{"text": "a", "label": "b"}\n')
    (folder / "train_5500.label").write_text("DESC:manner How did it happen ?\n")
    paragraph = {"context": "c", "qas": [{"question": "q", "answers": [{"text": "a"}], "is_impossible": False}]}
    (folder / "dev-v2.0.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}]}))
    question = {"question": "q", "answer": "a", "context": [["t", ["One.", "Two."]]], "supporting_facts": [["t", 0]]}
    (folder / "hotpot.json").write_text(json.dumps([question]))
    (folder / "essays.json").write_text('{"text": "One sentence. Another one."}')
    story = "1 Mary moved to the bathroom.\n2 Where is Mary? \tbathroom\t1\n"
    (folder / "qa1_single-supporting-fact_test.txt").write_text(story)


def use_benchmarks(folder: Path) -> None:
    read_rows(folder, "qasper")
    read_examples(folder / "train.jsonl")
    read_examples(folder / "train_5500.label")
    read_squad(folder / "dev-v2.0.json")
    read_hotpotqa(folder / "hotpot.json")
    read_haystack(folder / "essays.json", 100)
    read_stories(folder, "qa1")


_DATA = (
    "qasper_e.jsonl",
    "train.jsonl",
    "train_5500.label",
    "dev-v2.0.json",
    "hotpot.json",
    "essays.json",
    "qa1_single-supporting-fact_test.txt",
)
BENCHMARKS = Kind(
    write_benchmarks,
    use_benchmarks,
    _DATA,
    refused={
        f"{name}: {what}": content(name, data)
        for name in _DATA
        for what, data in {
            "brackets": "[" * 100_000,
            "not UTF-8": b"\xff\xfe{}",
            "null": "null",
            "strings": '["a", "b"]',
            "an object of lists": '{"data": [[]], "text": [], "label": 1, "input": []}',
            "a surrogate": '{"text": "\\ud800", "label": "a", "data": "\\ud800"}',
        }.items()
    },
)
