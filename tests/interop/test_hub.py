"""Model names: folders, Hub names, and what offline users are told."""

import fnmatch
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from rope_jax.errors import InputError
from rope_jax.interop import hub
from rope_jax.interop.hub import DOWNLOADED, resolve_model


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
