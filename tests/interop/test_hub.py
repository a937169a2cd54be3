"""Model names: folders, Hub names, and what offline users are told."""

import fnmatch
import shutil
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from rope_jax.errors import InputError
from rope_jax.interop import hub
from rope_jax.interop.hub import DOWNLOADED, commit_of, resolve_model
from rope_jax.interop.model_card import CardFacts, write_card
from rope_jax.interop.new_folder import rescale_folder
from rope_jax.rope.embedding import identity
from tests.interop.references import write_random_llama


def test_folders(tmp_path, monkeypatch):
    assert resolve_model(tmp_path) == resolve_model(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~") == tmp_path


@pytest.mark.parametrize("path", ["./no/such", "/no/such", "a/b/c", "no such", "../up"])
def test_neither_folder_nor_name(path):
    with pytest.raises(InputError, match=r"`path` is .*: there is no such folder"):
        resolve_model(path)


def test_a_file(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"`path` is .*give the folder that holds config.json"):
        resolve_model(tmp_path / "model.safetensors")


def test_offline():
    # The tests run with HF_HUB_OFFLINE=1, so this is what the library itself answers.
    message = r"`path` is nobody/nothing.*HF_HUB_OFFLINE is set.*give a folder, or connect"
    with pytest.raises(InputError, match=message):
        resolve_model("nobody/nothing")


def test_unknown_or_gated(monkeypatch):
    # The HTTP library underneath differs between releases; the error takes no more than this of it.
    error = RepositoryNotFoundError("404 not found\nmore", response=SimpleNamespace(headers={}, request=None))

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match=r"`path` is nobody/nothing.*\(404 not found\).*hf auth login"):
        resolve_model("nobody/nothing")


def test_only_data_is_downloaded(monkeypatch, tmp_path):
    asked = {}
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr(
        hub, "snapshot_download", lambda name, **options: asked.update(options, name=name) or str(tmp_path)
    )
    assert resolve_model("meta-llama/Llama-2-7b-hf", revision="main") == tmp_path
    assert (asked["name"], asked["revision"]) == ("meta-llama/Llama-2-7b-hf", "main")
    taken = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "model.safetensors.index.json"]
    left = ["pytorch_model.bin", "modeling.py", "original/consolidated.00.pth", "original/model-1.safetensors"]
    matches = {
        name: any(fnmatch.fnmatch(name, pattern) for pattern in asked["allow_patterns"]) for name in taken + left
    }
    assert matches == dict.fromkeys(taken, True) | dict.fromkeys(left, False)
    assert asked["allow_patterns"] == list(DOWNLOADED)


def test_a_snapshot_knows_its_commit_and_a_folder_has_no_revision(tmp_path):
    commit = "0123456789" * 4
    assert commit_of(tmp_path / "models--a--b" / "snapshots" / commit) == commit
    assert commit_of(tmp_path / commit) == commit_of(tmp_path / "snapshots" / "main") == ""
    with pytest.raises(InputError, match="`revision` is 'main'"):
        resolve_model(tmp_path, "main")


@pytest.mark.parametrize("path", ["n" * 300, "a/" + "n" * 300, "~nobody-of-this-name/x", "a\0b"])
def test_names_that_no_file_system_takes(path):
    with pytest.raises(InputError, match="there is no such folder"):
        resolve_model(path)


def test_links_out_of_a_folder_are_not_copied(tmp_path):
    """Those of the Hub's cache lead to its blobs, and are."""
    source, secret = write_random_llama(tmp_path / "in"), tmp_path / "secret"
    secret.write_text("private")
    for name in ("LICENSE", "tokenizer_config.json", "model.safetensors"):
        kept = (source / name).read_bytes() if (source / name).exists() else None
        (source / name).unlink(missing_ok=True)
        (source / name).symlink_to(secret if kept is None else shutil.copy2(tmp_path / "in.kept", secret))
        with pytest.raises(InputError, match=rf"{name} is a link to .*secret, outside of its folder"):
            rescale(source, tmp_path / "out")
        (source / name).unlink()
        if kept is not None:
            (source / name).write_bytes(kept)
        if name == "tokenizer_config.json":
            (tmp_path / "in.kept").write_bytes((source / "model.safetensors").read_bytes())
    (source / "LICENSE").write_text("terms")
    (source / "NOTICE").symlink_to(source / "LICENSE")  # within the folder
    cache = tmp_path / "models--a--b"
    snapshot = cache / "snapshots" / ("0123456789" * 4)
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(source.iterdir())):
        blob = shutil.copy(file, cache / "blobs" / f"{number:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    rescale(snapshot, tmp_path / "out")
    assert (tmp_path / "out" / "NOTICE").read_text() == "terms"
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def rescale(source, target):
    facts = CardFacts("t", "s", "pi", identity(12), 128, 256)
    card = lambda place: write_card(place, facts, source)  # noqa: E731
    rescale_folder(source, target, identity(12), context=256, provenance={}, extra_files=card)
