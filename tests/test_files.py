"""Text and JSON files: written whole, read with errors that name the path."""

import gzip
import json

import pytest

from rope_jax.errors import InputError
from rope_jax.files import read_json, read_json_lines, read_json_object, read_record, write_json


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_record(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    assert read_record(tmp_path / "absent.json") is None


def test_plain_and_compressed_files_read_alike(tmp_path):
    lines = [{"a": 1}, {"b": "\u2028"}]
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("rows.jsonl", "rows.jsonl.gz"):
        path = tmp_path / name
        assert list(read_json_lines(path)) == [(f"{path}:1", lines[0]), (f"{path}:3", lines[1])]


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff", b"[" * 100_000, b"9" * 5000, None],
    ids=["cut short", "not UTF-8", "nested", "long integer", "absent"],
)
@pytest.mark.parametrize("read", [read_json, read_json_object, lambda path: list(read_json_lines(path))])
def test_unusable_files_are_named(tmp_path, content, read):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json"):
        read(path)


def test_a_file_of_gigabytes_is_refused_unread(tmp_path):
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(5 << 30)
    with pytest.raises(InputError, match=r"x\.json holds more than 128 MiB"):
        read_json(path)


@pytest.mark.parametrize(
    "line", ["[]" * 10_000_000, "[" * 20_000_000, " " * 20_000_000], ids=["values", "nested", "blank"]
)
def test_lines_are_bounded_before_they_are_parsed(tmp_path, line):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(line.encode(), 1))
    with pytest.raises(InputError, match=r"rows\.jsonl\.gz:1 has more than 16 MiB"):
        list(read_json_lines(path))


def test_lines_are_read_one_by_one(tmp_path):
    """A file of many lines that are nothing is refused at the first one, and no more of it is read."""
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b"[]\n" * 100_000) + b"damaged")
    with pytest.raises(InputError, match=r"rows\.jsonl\.gz:1 is not a JSON object"):
        list(read_json_lines(path))
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "\\ud83d\\ude00"}\n{"a": ["\\uD800"]}\n')
    lines = read_json_lines(path)
    assert next(lines)[1] == {"a": "\U0001f600"}
    with pytest.raises(InputError, match=r"rows\.jsonl:2 is not valid JSON .*surrogates"):
        next(lines)


def test_an_object_has_unique_keys(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": {"b": 1, "b": 2}}')
    with pytest.raises(InputError, match=r"x\.json has the key 'b' twice"):
        read_json_object(path)
    path.write_text("[]")
    with pytest.raises(InputError, match=r"x\.json holds a JSON list"):
        read_json_object(path)
