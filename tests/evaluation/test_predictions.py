"""Predictions on disk: torn, damaged, repeated and foreign lines; answers cut where they end."""

import json

import pytest

from rope_jax.errors import InputError
from rope_jax.evaluation.answering import Prediction, answer_text, append_predictions, digest, read_predictions
from rope_jax.evaluation.sample import Sample

SAMPLES = [Sample(f"t/{i}", "t", f"prompt {i}", ("a",), 4, 8) for i in range(3)]
# Line separators of Python that are none of JSON lines.
ROWS = [Prediction(sample.id, digest(sample), "a\n\u2028\x85\U0001f600", 0.5, 0.1) for sample in SAMPLES]


def test_what_is_appended_is_read(tmp_path):
    path = tmp_path / "folder/t.jsonl"
    assert read_predictions(path, SAMPLES) == {}
    append_predictions(path, ROWS[:2])
    append_predictions(path, ROWS[2:])
    assert list(read_predictions(path, SAMPLES).values()) == ROWS


@pytest.mark.parametrize("left", [0, 1, 30])
def test_torn_last_line_is_dropped_from_the_file(tmp_path, left):
    path = tmp_path / "t.jsonl"
    append_predictions(path, ROWS[:2])
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1
    path.write_bytes(whole[: second + left])
    assert list(read_predictions(path, SAMPLES)) == ["t/0"]
    append_predictions(path, ROWS[1:2])
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "t.jsonl:2 is damaged"),
        ('{"id": "t/1"}', "t.jsonl:2 is damaged"),
        ("[]", "t.jsonl:2 is damaged"),
        (json.dumps(vars(ROWS[0])), "second prediction for t/0"),
        (json.dumps({**vars(ROWS[1]), "id": "t/9"}), "answers another prompt than t/9"),
        (json.dumps({**vars(ROWS[1]), "digest": "0"}), "answers another prompt than t/1"),
    ],
)
def test_lines_that_cannot_be_are_refused(tmp_path, line, message):
    path = tmp_path / "t.jsonl"
    append_predictions(path, ROWS[:1])
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=message):
        read_predictions(path, SAMPLES)


def test_answers_end_before_their_first_stop_string():
    sample = Sample("t", "t", "p", ("a",), 4, 8, stop=("\n", "END"))
    assert answer_text(sample, "one END two\nthree") == "one "
    assert answer_text(sample, "\nEND") == ""
    assert answer_text(sample, "none") == "none"
    # What must have a token first may begin with a stop string; its scorer takes the first line that is not empty.
    first = Sample("t", "t", "p", ("a",), 4, 8, stop=("\n",), min_new_tokens=1)
    assert answer_text(first, "\na\nb") == "\na\nb"
