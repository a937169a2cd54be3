"""Corpora: what becomes a document and a split, when a prepared copy is reused, and what is refused."""

import gzip
import importlib.resources.abc
import json
import os
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from rope_jax.data import text_files
from rope_jax.data.corpus import open_corpus
from rope_jax.errors import InputError
from tests.processes import ended, python


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def texts(source):
    return {document["id"]: document["text"] for document in source}


@pytest.fixture
def split_folder(tmp_path):
    root = tmp_path / "corpus"
    write(root / "train" / "b.txt", "second\r\n café 😀\n")
    write(root / "train" / "a.txt.gz", "first")
    write(root / "train" / "deep" / "c.jsonl", '{"text": "third"}\n\n{"text": "fourth", "url": 1}\n')
    write(root / "train" / "d.jsonl.gz", b'\xef\xbb\xbf{"text": "fifth"}')
    write(root / "train" / "empty.txt", " \n")
    write(root / "train" / "notes.md", "not read")
    write(root / "train" / ".hidden.txt", "not read")
    write(root / "test" / "t.txt", "test text")
    return root


def test_sub_folders_become_splits(split_folder, tmp_path):
    corpus = open_corpus("text_folder", split_folder, tmp_path / "cache")
    assert set(corpus) == {"train", "test"}
    assert [document["id"] for document in corpus["train"]] == [
        "train/a.txt.gz",
        "train/b.txt",
        "train/d.jsonl.gz:1",
        "train/deep/c.jsonl:1",
        "train/deep/c.jsonl:3",
    ]
    assert list(texts(corpus["train"]).values()) == [
        "first",
        "second\r\n café 😀\n",
        "fifth",
        "third",
        "fourth",
    ]
    assert corpus["train"][-1]["text"] == "fourth"
    with pytest.raises(IndexError):
        corpus["train"][5]
    with pytest.raises(InputError, match="train, test") as error:
        corpus["validation"]
    assert error.value.field == "split"


def test_flat_folder_holds_documents_out(tmp_path):
    written = {f"{i}.txt": f"text {i}" for i in range(40)}
    for name, text in written.items():
        write(tmp_path / "flat" / name, text)
    corpus = open_corpus("text_folder", tmp_path / "flat", tmp_path / "cache")
    train, validation = texts(corpus["train"]), texts(corpus["validation"])
    assert len(validation) == 4
    assert train | validation == written
    assert not set(train) & set(validation)
    again = open_corpus("text_folder", tmp_path / "flat", tmp_path / "elsewhere")
    assert texts(again["validation"]) == validation


def test_two_documents_give_one_to_each_split(tmp_path):
    write(tmp_path / "flat" / "two.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    corpus = open_corpus("text_folder", tmp_path / "flat", tmp_path / "cache")
    assert len(corpus["train"]) == len(corpus["validation"]) == 1


@pytest.mark.parametrize("length", [2, 9, 1000])
def test_single_document_is_cut(tmp_path, length):
    text = "".join(chr(0x100 + i) for i in range(length))
    write(tmp_path / "flat" / "only.txt", text)
    corpus = open_corpus("text_folder", tmp_path / "flat", tmp_path / "cache")
    train, validation = corpus["train"][0]["text"], corpus["validation"][0]["text"]
    assert train + validation == text
    assert len(validation) == max(1, round(0.1 * length))


def test_shards_keep_the_order_of_documents(tmp_path, monkeypatch):
    monkeypatch.setattr("rope_jax.data.corpus._SHARD_BYTES", 100)
    lines = [json.dumps({"text": f"{i} " + "x" * (i % 37)}) for i in range(200)]
    write(tmp_path / "corpus" / "train" / "all.jsonl", "\n".join(lines))
    source = open_corpus("text_folder", tmp_path / "corpus", tmp_path / "cache")["train"]
    assert [source[i]["text"] for i in range(200)] == [json.loads(line)["text"] for line in lines]
    assert len(list((tmp_path / "cache").rglob("*.array_record-*"))) > 20


def count_reads(monkeypatch):
    calls = []
    original = text_files.read_documents

    def counted(*arguments):
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(text_files, "read_documents", counted)
    return calls


def test_prepared_copy_is_reused_until_content_changes(split_folder, tmp_path, monkeypatch, capfd):
    reads = count_reads(monkeypatch)
    open_corpus("text_folder", split_folder, tmp_path / "cache")
    assert len(reads) == 4  # Two splits, each checked and written.
    open_corpus("text_folder", split_folder, tmp_path / "cache")
    assert len(reads) == 4
    # Same size, so that only the time of writing tells; the clock of some file systems is coarse.
    path = write(split_folder / "test" / "t.txt", "TEST TEXT")
    os.utime(path, ns=(1, 1))
    assert open_corpus("text_folder", split_folder, tmp_path / "cache")["test"][0]["text"] == "TEST TEXT"
    write(split_folder / "test" / "u.txt", "more")
    assert len(open_corpus("text_folder", split_folder, tmp_path / "cache")["test"]) == 2
    path.rename(path.with_name("z.txt"))
    corpus = open_corpus("text_folder", split_folder, tmp_path / "cache")
    assert [document["id"] for document in corpus["test"]] == ["test/u.txt", "test/z.txt"]
    assert capfd.readouterr() == ("", ""), "a small corpus is prepared in silence"


def test_interrupted_preparation_is_not_taken_for_complete(split_folder, tmp_path, monkeypatch):
    original = text_files.read_documents
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        for i, document in enumerate(original(*arguments)):
            if len(calls) == 3 and i == 2:  # The first two calls check, the third writes.
                raise KeyboardInterrupt
            yield document

    with monkeypatch.context() as patch:
        patch.setattr(text_files, "read_documents", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_corpus("text_folder", split_folder, tmp_path / "cache")
    assert len(open_corpus("text_folder", split_folder, tmp_path / "cache")["train"]) == 5


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {
    "no description": ("dataset_info.json", Path.unlink),
    "another description": ("dataset_info.json", lambda path: path.write_text(path.read_text().replace("5", "4"))),
    "a description cut": ("features.json", cut),
    "a shard gone": ("*train.array_record*", Path.unlink),
    "a shard cut": ("*train.array_record*", cut),
    "no contents": ("contents.json", Path.unlink),
    "contents cut": ("contents.json", cut),
    "contents of another type": ("contents.json", lambda path: path.write_text("[]")),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_copy_is_made_anew(split_folder, tmp_path, name, damage):
    whole = open_corpus("text_folder", split_folder, tmp_path / "cache")
    (path,) = (tmp_path / "cache").rglob(name)
    damage(path)
    # What a killed preparation leaves.
    write(path.parent / "1.0.0.incompleteABC" / "text_corpus-train.array_record", "")
    again = open_corpus("text_folder", split_folder, tmp_path / "cache")
    assert [texts(again[split]) for split in again] == [texts(whole[split]) for split in again]
    assert len(again["train"]) == 5 and again.digest == whole.digest


def test_digest_is_of_the_texts_and_not_of_the_files(split_folder, tmp_path):
    def digest(cache):
        return open_corpus("text_folder", split_folder, tmp_path / cache).digest

    before = digest("one")
    os.utime(split_folder / "test" / "t.txt", ns=(1, 1))
    assert digest("one") == digest("two") == before
    write(split_folder / "test" / "t.txt", "tost text")
    changed = digest("one")
    write(split_folder / "test" / "t.txt", "test text")
    (split_folder / "test" / "t.txt").rename(split_folder / "test" / "u.txt")
    assert len({before, changed, digest("one")}) == 3


PREPARE = """
import sys
from rope_jax.data.corpus import open_corpus
corpus = open_corpus("text_folder", sys.argv[1], sys.argv[2])
assert [len(corpus[split]) for split in ("train", "test")] == [5, 1]
corpus["train"][0]
from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.data.pipeline import training_batches
next(training_batches(corpus["train"], load_tokenizer("bytes"), 2, 4, seed=0))
assert "tensorflow" not in sys.modules
"""


@pytest.mark.slow
def test_processes_prepare_together_without_tensorflow_or_writing_elsewhere(split_folder, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    command = ("-c", PREPARE, split_folder, tmp_path / "cache")
    with python(*command, HOME=str(home)) as first, python(*command, HOME=str(home)) as second:
        assert ended(first, second) == [("", "")] * 2
    assert not list(home.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "corpus", "home"]


def bad_utf8(root):
    write(root / "x.txt", b"caf\xc3\xa9 caf\xe9")
    return r"x\.txt is not UTF-8 text at byte 9: .*iconv"


def bad_utf8_in_compressed_lines(root):
    write(root / "x.jsonl.gz", b'{"text": "a"}\n{"text": "\xff"}\n')
    return r"x\.jsonl\.gz:2 is not UTF-8 text at byte 10: .*iconv"


def line_without_text(root):
    write(root / "x.jsonl", '{"text": "a"}\n\n{"txt": "b"}\n')
    return r'x\.jsonl:3 has no "text".*JSON object'


def line_with_number(root):
    write(root / "x.jsonl", '{"text": 1}\n')
    return r'x\.jsonl:1 has no "text"'


def line_not_an_object(root):
    write(root / "x.jsonl", '"text"\n')
    return r"x\.jsonl:1 is not a JSON object"


def line_not_json(root):
    write(root / "x.jsonl", '{"text": "a"}\n{"text": \n')
    return r"x\.jsonl:2 is not valid JSON"


def line_nested_without_end(root):
    write(root / "x.jsonl", '{"text":' * 100_000)
    return r"x\.jsonl:1 is not valid JSON"


def unpaired_surrogate(root):
    write(root / "x.jsonl", '{"text": "ab\\ud800"}\n')
    return r"x\.jsonl:1 is not valid JSON .*surrogates"


def truncated_gzip(root):
    path = write(root / "x.txt.gz", "text" * 1000)
    path.write_bytes(path.read_bytes()[:-12])
    return r"x\.txt\.gz cannot be read .*repair it"


def not_gzip(root):
    write(root / "x.txt", "text").rename(root / "x.txt.gz")
    return r"x\.txt\.gz cannot be read"


def only_whitespace(root):
    write(root / "x.txt", " \n\t")
    return r"has no text, only whitespace"


def split_of_whitespace(root):
    write(root / "train" / "x.txt", "text")
    write(root / "test" / "x.txt", " ")
    return r"has no text in test, only whitespace"


def single_character(root):
    write(root / "x.txt", "x")
    return r"is a single character"


def no_such_ending(root):
    write(root / "x.md", "text")
    return r"holds no file ending in \.txt, .*\.jsonl\.gz"


def file_beside_splits(root):
    write(root / "train" / "x.txt", "text")
    write(root / "y.txt", "text")
    return r"has the splits train, and .*y\.txt is in none"


def link_out(root):
    target = write(root.parent / "secret.txt", "secret")
    write(root / "x.txt", "text")
    (root / "y.txt").symlink_to(target)
    return r"y\.txt is a symbolic link out"


def link_to_folder(root):
    write(root.parent / "outside" / "secret.txt", "secret")
    root.mkdir()
    (root / "train").symlink_to(root.parent / "outside")
    return r"train is a symbolic link"


def dangling_link(root):
    root.mkdir()
    (root / "y.txt").symlink_to(root / "absent.txt")
    return r"y\.txt is a symbolic link"


def named_pipe(root):
    root.mkdir()
    os.mkfifo(root / "x.txt")
    return r"x\.txt is not a regular file"


def oversized(root):
    write(root / "x.txt.gz", "x" * 2000)
    return r"x\.txt\.gz holds more than 0 MiB"


BAD = [
    bad_utf8,
    bad_utf8_in_compressed_lines,
    line_without_text,
    line_with_number,
    line_not_an_object,
    line_not_json,
    line_nested_without_end,
    unpaired_surrogate,
    truncated_gzip,
    not_gzip,
    only_whitespace,
    split_of_whitespace,
    single_character,
    no_such_ending,
    file_beside_splits,
    link_out,
    link_to_folder,
    dangling_link,
    named_pipe,
    oversized,
]


# The folder that `path` names is at fault rather than a file in it.
WHOLE_FOLDER = {only_whitespace, split_of_whitespace, single_character, no_such_ending}


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_input_is_named_before_anything_is_written(make, tmp_path, monkeypatch):
    if make is oversized:
        monkeypatch.setattr(text_files, "DOCUMENT_LIMIT", 1000)
    message = make(tmp_path / "corpus")
    with pytest.raises(InputError, match=message) as error:
        open_corpus("text_folder", tmp_path / "corpus", tmp_path / "cache")
    assert error.value.field == ("path" if make in WHOLE_FOLDER else "")
    assert not (tmp_path / "cache").exists()


def test_missing_folder_file_and_unknown_name(tmp_path):
    file = write(tmp_path / "x.txt", "text")
    for name, path in (("text_folder", tmp_path / "absent"), ("text_folder", ""), ("pg19", ""), ("text_folder", file)):
        with pytest.raises(InputError) as error:
            open_corpus(name, path, tmp_path / "cache")
        assert error.value.field == "path" and str(path) in str(error.value)
    with pytest.raises(InputError, match="text_folder, python_stdlib, pg19") as error:
        open_corpus("c4", tmp_path, tmp_path / "cache")
    assert error.value.field == "name"


def test_link_within_the_folder_is_read(tmp_path):
    write(tmp_path / "corpus" / "a.txt", "text")
    (tmp_path / "corpus" / "b.txt").symlink_to(tmp_path / "corpus" / "a.txt")
    corpus = open_corpus("text_folder", tmp_path / "corpus", tmp_path / "cache")
    assert len(corpus["train"]) + len(corpus["validation"]) == 2


def test_python_stdlib(tmp_path):
    corpus = open_corpus("python_stdlib", "", tmp_path)
    documents = texts(corpus["train"]) | texts(corpus["validation"])
    assert "pydoc_data/topics.py" in documents
    assert documents["json/decoder.py"] == Path(json.decoder.__file__).read_text("utf-8")
    assert not [name for name in documents if {"test", "tests", "site-packages"} & set(name.split("/"))]
    assert not any("_sysconfigdata" in name for name in documents)
    assert sum(len(text.encode()) for text in documents.values()) > 8e6
    assert len(corpus["validation"]) == round(0.1 * len(documents))
    ids = [document["id"] for document in corpus["train"]]
    assert ids == sorted(ids)


def prepare_pg19(data_dir, monkeypatch):
    """A tiny copy written by the public builder, its download replaced."""
    builder_class = tfds.builder_cls("pg19")

    def generate(self, number):
        yield (
            number,
            {
                "book_text": f"Book number {number}.",
                "book_id": number,
                "book_title": "Title",
                "publication_date": "1900",
                "book_link": "http://example.org",
            },
        )

    def generators(self, dl_manager):
        return {split: self._generate_examples(i) for i, split in enumerate(["train", "validation", "test"])}

    monkeypatch.setattr(builder_class, "_generate_examples", generate)
    monkeypatch.setattr(builder_class, "_split_generators", generators)
    # To prepare (not to read) datasets of a package, TFDS needs a backport that it does not require.
    monkeypatch.setitem(sys.modules, "importlib_resources", importlib.resources)
    builder = tfds.builder("pg19", data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return builder


def test_pg19_reads_a_prepared_copy(tmp_path, monkeypatch):
    builder = prepare_pg19(tmp_path, monkeypatch)
    corpus = open_corpus("pg19", tmp_path, tmp_path / "cache")
    assert {split: list(source) for split, source in corpus.items()} == {
        "train": [{"id": "0", "text": "Book number 0."}],
        "validation": [{"id": "1", "text": "Book number 1."}],
        "test": [{"id": "2", "text": "Book number 2."}],
    }
    assert "tensorflow" not in sys.modules
    info = builder.data_path / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    for path in builder.data_path.glob("*.array_record*"):
        path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
    with pytest.raises(InputError, match=r"tfrecord.*data_dir='\S+-array-record'") as error:
        open_corpus("pg19", tmp_path, tmp_path / "cache")
    assert error.value.field == "path" and "\n" not in str(error.value)


def test_pg19_names_the_command_that_prepares_it(tmp_path):
    with pytest.raises(
        InputError,
        match=r"'\.\[pg19\]'.*tfds\.builder\('pg19', data_dir='\S+', file_format='array_record'\)",
    ):
        open_corpus("pg19", tmp_path, tmp_path / "cache")
    assert not list(tmp_path.iterdir())


def test_books(shared, tmp_path):
    corpus = open_corpus("text_folder", shared / "data" / "books", tmp_path)
    for split, source in corpus.items():
        files = sorted((shared / "data" / "books" / split).iterdir())
        assert [document["id"] for document in source] == [f"{split}/{path.name}" for path in files]
        assert source[0]["text"] == files[0].read_bytes().decode()
