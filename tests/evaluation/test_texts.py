"""Which documents are measured on."""

import pytest

from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.texts import TextSelection

BYTES = load_tokenizer("bytes")


def write(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"Text of {name}.")
    return str(folder)


def test_all_documents_of_a_folder_without_splits_are_measured_on(tmp_path):
    texts = TextSelection("text_folder", write(tmp_path / "texts", ("a.txt", "b/c.txt", "d.txt"))).open(tmp_path, BYTES)
    assert [BYTES.decode(ids) for ids in texts.sliding] == ["Text of a.txt.", "Text of b/c.txt.", "Text of d.txt."]
    assert (
        texts.digest
        == TextSelection("text_folder", write(tmp_path / "again", ("a.txt", "b/c.txt", "d.txt")))
        .open(tmp_path, BYTES)
        .digest
    )
    # Nothing was prepared.
    assert {path.name for path in tmp_path.iterdir()} == {"texts", "again"}


def test_a_digest_tells_texts_and_budgets_apart(tmp_path):
    folder = write(tmp_path / "texts", ("a.txt", "b.txt"))
    budgets = [{}, {"max_tokens": 20}, {"position_tokens": 20}, {"document_tokens": 5}]
    digests = [TextSelection("text_folder", folder, **budget).open(tmp_path, BYTES).digest for budget in budgets]
    assert len(set(digests)) == 4


def test_folders_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in ("", str(tmp_path / "nowhere"), str(tmp_path / "empty")):
        with pytest.raises(InputError) as error:
            TextSelection("text_folder", path).open(tmp_path / "cache", BYTES)
        assert error.value.field == "path"
