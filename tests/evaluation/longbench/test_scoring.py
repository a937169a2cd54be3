"""LongBench-E's scores against the ones its own scorer gave to published predictions, and its metrics by hand."""

import gzip
import json
import math
import os
import shutil

import pytest

from rope_jax.errors import InputError
from rope_jax.evaluation.longbench import sets
from rope_jax.evaluation.longbench.scoring import (
    Scored,
    bucket_intervals,
    bucket_scores,
    read_scored,
    score_prediction,
    write_scores,
)
from rope_jax.evaluation.longbench.sets import SETS

# ROUGE of long summaries takes most of the time: ROPE_JAX_LONG=1 asks for all 39 cells.
SLOW = ("gov_report", "multi_news")


def published(shared, names, folder):
    source = shared / "data/longbench_e_scored"
    for name in names:
        shutil.copy(source / f"{name}.jsonl", folder)
    want = json.loads((source / "result.json").read_text())
    return {name: want[name] for name in names}


def test_published_cells_are_reproduced_and_written(shared, tmp_path):
    (tmp_path / "in").mkdir()
    slow = () if os.environ.get("ROPE_JAX_LONG") else SLOW
    want = published(shared, [name for name in SETS if name not in slow], tmp_path / "in")
    scores = write_scores(tmp_path / "in", tmp_path / "out")
    assert scores == want and sum(len(row) for row in scores.values()) == 39 - 3 * len(slow)
    assert json.loads((tmp_path / "out/results.json").read_text()) == {"longbench_e": want}
    details = json.loads((tmp_path / "out/longbench_e.json").read_text())
    assert sorted(details["not_scored"]) == sorted(slow)
    counts = {"qasper": [100, 100, 24], "multifieldqa_en": [67, 70, 13], "multi_news": [100, 100, 94]}
    for name, row in want.items():
        for (column, score), count in zip(row.items(), counts.get(name, [100, 100, 100])):
            cell = details["table"][name][column]
            # The published score is rounded to two digits.
            assert abs(cell["mean"] - score) <= 0.005 + 1e-9
            assert cell["samples"] == count and cell["interval"][0] <= cell["mean"] <= cell["interval"][1]
    average = details["table"]["average"]["average"]["mean"]
    assert abs(average - sum(sum(row.values()) for row in want.values()) / (3 * len(want))) <= 0.005


def test_written_files_and_sets_without_a_file(shared, tmp_path):
    (tmp_path / "in").mkdir()
    want = published(shared, ["trec", "lcc"], tmp_path / "in")
    (tmp_path / "in/result.json").write_text("{}")  # What LongBench's own code leaves there is no prediction file.
    write_scores(tmp_path / "in", tmp_path / "a/b")
    assert json.loads((tmp_path / "a/b/results.json").read_text()) == {"longbench_e": want}
    details = json.loads((tmp_path / "a/b/longbench_e.json").read_text())
    assert len(details["not_scored"]) == 11 and "qasper" in details["not_scored"]
    assert list(details["table"]) == ["trec", "lcc", "average"]


def test_gzip_and_empty_buckets(tmp_path):
    row = {"pred": "\n 7 of 8, 7", "answers": ["7"], "all_classes": None, "length": 3999}
    with gzip.open(tmp_path / "passage_count.jsonl.gz", "wt") as file:
        file.write(json.dumps(row) + "\n\n" + json.dumps({**row, "length": 4000}) + "\n")
    scores = write_scores(tmp_path, tmp_path / "out")["passage_count"]
    assert scores["0-4k"] == scores["4-8k"] == 66.67 and math.isnan(scores["8k+"])
    assert json.loads((tmp_path / "out/results.json").read_text())["longbench_e"]["passage_count"]["8k+"] is None
    table = bucket_intervals(read_scored(tmp_path))
    assert table["average"]["8k+"].mean is None and table["passage_count"]["average"].mean is None


def test_bucket_edges():
    rows = [Scored(length, score) for length, score in ((0, 1.0), (3999, 0.0), (4000, 1.0), (7999, 1.0), (8000, 0.0))]
    assert bucket_scores(rows) == {"0-4k": 50.0, "4-8k": 100.0, "8k+": 0.0}


def test_classification_skips_elements_while_removing():
    # "A" and "B" are both part of the gold "A B C". Removing "A" makes the walk skip "B", which stays.
    assert sets.classification("A B C", "A B C", ["A", "B", "A B C"]) == 1 / 2
    assert sets.classification("A B C", "A B C", ["A", "A B C", "D"]) == 1
    assert sets.classification("D", "A B C", ["A", "A B C", "D"]) == 0


def test_code_similarity():
    assert sets.code_similarity("\n\n# comment\n`x`\n// y\nint a;\nb", "int a;", []) == 1
    assert sets.code_similarity("", "", []) == 1
    assert sets.code_similarity("# only a comment", "x", []) == sets.code_similarity("x", "", []) == 0
    # 2 * 3 matching of 8 characters is 0.75; 2 * 2 of 7 is 0.571..., rounded to hundredths.
    assert sets.code_similarity("abcd", "abce", []) == 0.75
    assert sets.code_similarity("abc", "abde", []) == 0.57


def test_numbers():
    assert sets.count("There are 4 of 12, no, 4.", "4", []) == pytest.approx(2 / 3)
    assert sets.count("none", "4", []) == 0
    assert sets.retrieval("Paragraph 12 or 1", "Paragraph 12", []) == 1 / 2
    with pytest.raises(InputError, match="Paragraph N"):
        sets.retrieval("1", "one", [])


def test_rouge_of_nothing_is_zero():
    assert sets.rouge_l("", "a b", []) == sets.rouge_l(".", "a b", []) == 0
    assert sets.rouge_l("a b", "a b", []) == pytest.approx(1, abs=1e-6)  # The package adds 1e-8 to a divisor.


def test_best_answer_and_first_line():
    assert score_prediction("hotpotqa", "the Eiffel Tower!", ["Rome", "Eiffel tower"], None) == 1
    assert score_prediction("triviaqa", "\n\nParis\nQuestion: London", ["Paris"], None) == 1
    assert score_prediction("hotpotqa", "Paris\nLondon", ["Paris"], None) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("qasper.jsonl", "{", "qasper.jsonl:1 is not valid JSON"),
        ("qasper.jsonl", "[]", "qasper.jsonl:1 is not a JSON object"),
        ("qasper.jsonl", '{"answers": ["a"], "length": 1}', '"pred"'),
        ("qasper.jsonl", '{"pred": "", "answers": "a", "length": 1}', '"answers"'),
        ("qasper.jsonl", '{"pred": "", "answers": ["a"], "length": "1"}', '"length"'),
        ("trec.jsonl", '{"pred": "", "answers": ["a"], "length": 1, "all_classes": [1]}', '"all_classes"'),
        ("narrativeqa.jsonl", "{}", "not named after a set"),
    ],
)
def test_bad_prediction_files_leave_nothing_written(tmp_path, name, line, message):
    (tmp_path / name).write_text(line + "\n")
    (tmp_path / "lcc.jsonl").write_text('{"pred": "a", "answers": ["a"], "length": 1}\n')
    with pytest.raises(InputError, match=message):
        write_scores(tmp_path, tmp_path / "out", progress=lambda rows: pytest.fail("scored before all was read"))
    assert not (tmp_path / "out").exists()


def test_folders_without_predictions(tmp_path):
    with pytest.raises(InputError, match="no prediction file"):
        read_scored(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        read_scored(tmp_path / "absent")
