"""Records on disk: torn, damaged, repeated and foreign ones; predictions of changed prompts; answers cut."""

import json
import os
import resource

import numpy as np
import pytest

from rope_jax.errors import InputError
from rope_jax.evaluation.answering import Prediction, answer_text, read_predictions, sample_digest
from rope_jax.evaluation.kept import Kept
from rope_jax.evaluation.sample import Sample

SAMPLES = [Sample(f"t/{i}", "t", f"prompt {i}", ("a",), 4, 8) for i in range(3)]
TOKENS = np.arange(4, dtype=np.int32)
DIGESTS = {sample.id: sample_digest(sample, TOKENS) for sample in SAMPLES}
# Line separators of Python that are none of JSON lines.
ROWS = {name: Prediction(digest, "a\n\u2028\x85\U0001f600", 0.5, 0.1) for name, digest in DIGESTS.items()}
OF = {"vector": "1", "weights": "2"}


def kept(folder, names=tuple(ROWS), of=OF, say=lambda text: None):
    """A file with the rows of these names, if there are any."""
    found = Kept(folder / "t.jsonl", of, say)
    if names:
        found.append({name: vars(ROWS[name]) for name in names})
    return found


def test_what_is_appended_is_read(tmp_path):
    file = kept(tmp_path / "folder", ())
    assert read_predictions(file, DIGESTS) == {}
    for name, row in ROWS.items():
        file.append({name: vars(row)})
    assert read_predictions(file, DIGESTS) == ROWS
    Kept().append({"a": {}})
    assert Kept().read() == {}


@pytest.mark.parametrize("left", [0, 1, 30])
def test_torn_last_line_is_dropped_from_the_file(tmp_path, left):
    file = kept(tmp_path, ["t/0", "t/1"])
    whole = file.path.read_bytes()
    end = whole[:-1].rindex(b"\n") + 1
    file.path.write_bytes(whole[: end + left])
    assert list(read_predictions(file, DIGESTS)) == ["t/0"]
    file.append({"t/1": vars(ROWS["t/1"])})
    assert file.path.read_bytes() == whole
    # Of a first line that is torn nothing is left, not even what the file is of.
    file.path.write_bytes(whole[:5])
    assert file.read() == {} and file.path.read_bytes() == b""
    file.append({"t/0": vars(ROWS["t/0"])})
    assert list(file.read()) == ["t/0"]


def test_a_full_disk_costs_the_record_that_was_being_written(tmp_path):
    """Files that cannot grow fail within a write, as on a full disk."""
    file, before = kept(tmp_path, ["t/0"]), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.path.stat().st_size + 20, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.append({"t/1": vars(ROWS["t/1"])})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not file.path.read_bytes().endswith(b"\n")
    assert list(read_predictions(file, DIGESTS)) == ["t/0"]
    file.append({"t/1": vars(ROWS["t/1"])})
    assert list(read_predictions(file, DIGESTS)) == ["t/0", "t/1"]


ROW = {"id": "t/1", **vars(ROWS["t/1"])}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "t.jsonl:3 is not valid JSON"),
        ("[]", "t.jsonl:3 is not a JSON object"),
        ("{" + '"a":[' * 50_000, "t.jsonl:3 is not valid JSON"),
        (json.dumps(vars(ROWS["t/1"])), "t.jsonl:3 is damaged, it has no id"),
        (json.dumps({**ROW, "id": "t/0"}), "second record of t/0"),
        (json.dumps({"id": "t/1"}), "t/1 is damaged"),
        *(
            (json.dumps({**ROW, "score": score}), "t/1 is damaged")
            for score in (float("nan"), 7, -0.1, "1", None, True)
        ),
        (json.dumps({**ROW, "seconds": float("inf")}), "t/1 is damaged"),
        (json.dumps({**ROW, "prediction": 1}), "t/1 is damaged"),
        (json.dumps({**ROW, "prediction": "\ud800"}), "t.jsonl:3 is not valid JSON .*surrogates"),
        (json.dumps({**ROW, "more": 1}), "t/1 is damaged"),
    ],
)
def test_damaged_lines_are_named(tmp_path, line, message):
    file = kept(tmp_path, ["t/0"])
    with file.path.open("a") as out:
        out.write(line + "\n")
    with pytest.raises(InputError, match=message):
        read_predictions(file, DIGESTS)


def test_only_a_torn_line_is_dropped(tmp_path, monkeypatch):
    """Not a line that is longer than any; and what is no file is neither read nor waited for."""
    file = kept(tmp_path)
    monkeypatch.setattr("rope_jax.evaluation.kept.LONGEST_LINE", 1000)
    whole = file.path.read_bytes() + b"{" * 1000
    file.path.write_bytes(whole)
    with pytest.raises(InputError, match=r"t\.jsonl:5 is not valid JSON"):
        file.read()
    assert file.path.read_bytes() == whole
    file.path.unlink()
    os.mkfifo(file.path)
    with pytest.raises(InputError, match=r"t\.jsonl is not a regular file"):
        file.read()


def test_a_file_of_something_else_is_set_aside(tmp_path):
    said = []
    before = kept(tmp_path).path.read_text()
    other = kept(tmp_path, (), {**OF, "vector": "3"}, said.append)
    assert read_predictions(other, DIGESTS) == {}
    assert "is of another vector: measured anew" in said[0] and "t.old1.jsonl" in said[0]
    assert (tmp_path / "t.old1.jsonl").read_text() == before and not other.path.exists()
    # A file of a version that did not say what it is of.
    other.path.write_text(json.dumps(ROW) + "\n")
    assert read_predictions(other, DIGESTS) == {} and "another vector, weights" in said[1]
    assert (tmp_path / "t.old2.jsonl").exists()


def test_predictions_of_changed_prompts_are_dropped(tmp_path):
    said = []
    file = kept(tmp_path, say=said.append)
    changed = DIGESTS | {"t/1": sample_digest(SAMPLES[1], TOKENS[:-1])}
    del changed["t/2"]  # Not asked now, and kept.
    assert list(read_predictions(file, changed)) == ["t/0"]
    assert "1 of its prompts have changed, t/1 first" in said[0]
    assert list(file.read()) == ["t/0", "t/2"]


def test_answers_end_before_their_first_stop_string():
    sample = Sample("t", "t", "p", ("a",), 4, 8, stop=("\n", "END"))
    assert answer_text(sample, "one END two\nthree") == "one "
    assert answer_text(sample, "\nEND") == ""
    assert answer_text(sample, "none") == "none"
    # What must have a token first may begin with a stop string; its scorer takes the first line that is not empty.
    first = Sample("t", "t", "p", ("a",), 4, 8, stop=("\n",), min_new_tokens=1)
    assert answer_text(first, "\na\nb") == "\na\nb"
