"""Weights that are incomplete, corrupt, of another model or dangerous are refused before a tensor is read."""

import json
import os
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from rope_jax.errors import InputError
from rope_jax.interop.huggingface import check_model, read_model
from rope_jax.interop.model_card import CardFacts, write_card
from rope_jax.interop.new_folder import rescale_folder
from rope_jax.interop.tensor_files import StoredTensor
from rope_jax.rope.embedding import identity
from tests.interop.references import quiet_transformers, write_random_llama


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    place = tmp_path_factory.mktemp("originals")
    write_random_llama(place / "single")
    write_random_llama(place / "tied", tie_word_embeddings=True)
    write_random_llama(place / "sharded", shard="20KB")
    return place


@pytest.fixture
def model(originals, tmp_path, monkeypatch):
    """Copies of the originals, in which reading a tensor fails the test."""

    def read(tensor, *_):
        raise AssertionError(f"{tensor.name} was read before all checks were done")

    monkeypatch.setattr(StoredTensor, "read", read)
    monkeypatch.setattr(StoredTensor, "blocks", read)
    shutil.copytree(originals, tmp_path / "models")
    return tmp_path / "models"


def refuse(folder, *messages):
    """Neither is the model read, nor does a copy of it appear, in whole or in part."""
    before = sorted(folder.parent.rglob("*"))
    for attempt in (read_model, copy):
        with pytest.raises(InputError) as error:
            attempt(folder)
        assert str(folder) in str(error.value)
        for message in messages:
            assert re.search(message, str(error.value)), error.value
    assert sorted(folder.parent.rglob("*")) == before


def copy(folder):
    rescale_folder(folder, folder.parent / "copy", identity(12), context=256, provenance={})


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_header(file, change):
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = change(data[8 : 8 + length].decode())
    if not isinstance(header, bytes):
        header = header.encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])


def change_entry(file, name, **fields):
    def change(text):
        header = json.loads(text)
        header[name] |= fields
        return json.dumps(header)

    change_header(file, change)


def change_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def shards(folder):
    return sorted(folder.glob("model-*.safetensors"))


def test_headers_suffice_for_a_check(model):
    for folder in model.iterdir():
        assert check_model(folder).config.num_layers == 2


def test_no_folder_or_config(model, tmp_path):
    with pytest.raises(InputError, match="nowhere is not a folder"):
        read_model(tmp_path / "nowhere")
    (model / "single" / "config.json").unlink()
    refuse(model / "single", "holds no config.json")


def test_missing_tensors(model):
    def drop(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.norm.weight"]

    change_tensors(model / "single", drop)
    refuse(model / "single", r"lacks model.layers.1.mlp.up_proj.weight, model.norm.weight")


def test_missing_head(model):
    change_tensors(model / "single", lambda tensors: tensors.pop("lm_head.weight"))
    refuse(model / "single", r"lacks lm_head.weight", r"tie_word_embeddings")


def test_unexpected_tensors(model):
    change_tensors(
        model / "single",
        lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(48, np.float32)}),
    )
    refuse(model / "single", r"holds model.layers.0.self_attn.q_proj.bias")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, r"lacks model.layers.0.self_attn.q_proj.bias, .* and 4 more"),
        ({"model_type": "qwen2"}, r"lacks model.layers.0.self_attn.q_proj.bias, .* and 2 more"),
        ({"model_type": "qwen3"}, r"lacks model.layers.0.self_attn.q_norm.weight, .*k_norm.weight"),
    ],
)
def test_weights_of_another_architecture(model, changes, message):
    path = model / "single" / "config.json"
    config = json.loads(path.read_text()) | {"architectures": None} | changes
    del config["mlp_bias"]
    if changes.get("model_type") == "qwen2":
        del config["attention_bias"]
    path.write_text(json.dumps(config))
    refuse(model / "single", message)


def test_weights_without_their_config(model, tmp_path):
    # A Qwen3 that says it is a LLaMA.
    folder = write_random_llama(tmp_path / "qwen", architecture="qwen3", head_dim=12)
    shutil.copy(model / "single" / "config.json", folder)
    refuse(folder, r"holds model.layers.0.self_attn.k_norm.weight, .*q_norm.weight")


def test_more_layers_than_the_config_says(model):
    config = json.loads((model / "single" / "config.json").read_text())
    (model / "single" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    refuse(model / "single", r"holds model.layers.1.\S+, model.layers.1.\S+, .* and 5 more")


def test_wrong_shape(model):
    change_tensors(
        model / "single",
        lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.weight": np.zeros((48, 80), np.float32)}),
    )
    refuse(model / "single", r"model.layers.0.mlp.up_proj.weight has shape \[48, 80\] where .* \[80, 48\]")


@pytest.mark.parametrize(("dtype", "name"), [(np.float64, "F64"), (np.int8, "I8")])
def test_wrong_dtype(model, dtype, name):
    change_tensors(
        model / "single",
        lambda tensors: tensors.update({"model.norm.weight": np.ones(48, dtype)}),
    )
    refuse(model / "single", rf"model.norm.weight is {name} where one of F32, BF16, F16")


def test_mixed_dtypes_need_a_decision(originals, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(originals / "single", folder)
    change_tensors(
        folder,
        lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].astype(np.float16)}),
    )
    with pytest.raises(
        InputError, match=r"mixes dtypes .*model.norm.weight is float16.*give `param_dtype`, such as 'float32'"
    ):
        read_model(folder)
    assert read_model(folder, param_dtype="float32").config.param_dtype == "float32"
    with pytest.raises(InputError, match="`param_dtype` is 'int8': use one of float32, bfloat16, float16"):
        read_model(folder, param_dtype="int8")


def test_values_beyond_a_narrower_dtype(originals, tmp_path):
    folder = tmp_path / "large"
    shutil.copytree(originals / "single", folder)
    change_tensors(folder, lambda tensors: tensors["model.norm.weight"].__setitem__(3, 1e5))
    with pytest.raises(InputError, match=r"model.norm.weight has values beyond the range of float16"):
        read_model(folder, param_dtype="float16")
    assert read_model(folder, param_dtype="bfloat16").params["norm"]["weight"][3] > 9e4


def test_tied_head_that_differs(originals, tmp_path):
    folder = tmp_path / "tied"
    shutil.copytree(originals / "tied", folder)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    for head, message in (
        (embedding + 1, "lm_head.weight differs from model.embed_tokens.weight"),
        (embedding.astype(np.float16), "lm_head.weight differs"),
        (embedding[:-1], r"lm_head.weight has shape \[95, 48\]"),
    ):
        change_tensors(folder, lambda tensors, head=head: tensors.update({"lm_head.weight": head}))
        refuse(folder, message)


@pytest.mark.parametrize("kind", ["single", "sharded"])
@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_truncated_file(model, kind, size):
    file = sorted((model / kind).glob("*.safetensors"))[-1]
    data = file.read_bytes()
    file.write_bytes(data[:size])
    refuse(model / kind, re.escape(str(file)), "is truncated or corrupt", "download it again")


def test_trailing_bytes(model):
    with (model / "single" / "model.safetensors").open("ab") as stream:
        stream.write(b"x")
    refuse(model / "single", r"model.safetensors is truncated or corrupt \(.*file not fully covered\)")


def test_git_lfs_pointer(model):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (model / "single" / "model.safetensors").write_text(text)
    refuse(model / "single", r"is a Git LFS pointer", r"git lfs pull")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "{" + text[2:], "invalid JSON in header"),
        (lambda text: b"\xff" + text.encode()[1:], "invalid UTF-8 in header"),
        (lambda text: "[]", "invalid JSON in header"),
        (lambda text: "[" * 100_000, "invalid JSON in header"),
        (lambda text: '{"model.norm.weight": 3}', "invalid JSON in header"),
        (
            lambda text: text.replace(
                '{"', '{"model.norm.weight":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"', 1
            ),
            "has the key 'model.norm.weight' twice",
        ),
    ],
)
def test_corrupt_header(model, change, message):
    file = model / "single" / "model.safetensors"
    change_header(file, change)
    refuse(model / "single", re.escape(str(file)), message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": [-48]}, "invalid value"),
        ({"shape": [48.0]}, "invalid type"),
        ({"shape": [True]}, "invalid type"),
        ({"shape": [2**40, 2**40]}, "overflow"),
        ({"dtype": 32}, "invalid type"),
        ({"dtype": "F31"}, "unknown variant"),
        ({"data_offsets": [0]}, "invalid length"),
        ({"data_offsets": [192, 0]}, "invalid offset"),
        ({"shape": [49]}, "invalid shape"),
        # Overlapping another tensor, or reaching out of the file.
        ({"data_offsets": [0, 192]}, "invalid offset"),
        ({"data_offsets": [10**12, 10**12 + 192]}, "invalid offset"),
    ],
)
def test_corrupt_entry(model, fields, message):
    file = model / "single" / "model.safetensors"
    change_entry(file, "model.norm.weight", **fields)
    refuse(model / "single", re.escape(str(file)), "is truncated or corrupt", message)


def test_header_longer_than_the_format_allows(model):
    file = model / "single" / "model.safetensors"
    with file.open("r+b") as stream:
        stream.write((10**8 + 1).to_bytes(8, "little"))
        stream.truncate(2 * 10**8)  # a hole, which takes no room
    refuse(model / "single", "header too large")


def test_missing_shard(model):
    file = shards(model / "sharded")[1]
    file.unlink()
    refuse(model / "sharded", re.escape(str(file)), "is missing")


@pytest.mark.parametrize(
    "place",
    [
        "../single/model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "C:model.safetensors",
        "..",
        "",
        "model.bin",
        7,
    ],
)
def test_index_that_leaves_the_folder(model, place):
    change_index(model / "sharded", lambda places: places.update({"model.norm.weight": place}))
    refuse(model / "sharded", "places tensor model.norm.weight in", "only .safetensors files of the folder")


def test_index_and_shards_disagree(model):
    folder = model / "sharded"
    names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    other = next(file for file in names.values() if file != names["model.norm.weight"])
    change_index(folder, lambda places: places.update({"model.norm.weight": other}))
    refuse(folder, f"{other} lacks tensor model.norm.weight")
    change_index(folder, lambda places: places.pop("model.norm.weight"))
    refuse(folder, "holds tensor model.norm.weight, which .* does not list")


def test_tensor_in_two_shards(model):
    folder = model / "sharded"
    first, last = shards(folder)[0], shards(folder)[-1]
    tensors = load_file(last)
    name, tensor = next(iter(load_file(first).items()))
    save_file(tensors | {name: tensor}, last)
    refuse(folder, f"tensor {name} is in both {first.name} and {last.name}")


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_index_without_a_map(model, text):
    (model / "sharded" / "model.safetensors.index.json").write_text(text)
    refuse(model / "sharded", "has no weight_map")


def test_index_and_single_file(model):
    shutil.copy(model / "single" / "model.safetensors", model / "sharded")
    refuse(model / "sharded", "holds both model.safetensors and model.safetensors.index.json")


@pytest.mark.parametrize("name", ["model.bin", "consolidated.00.pth"])
def test_pickles_of_another_layout(model, name):
    folder = model / "single"
    (folder / "model.safetensors").rename(folder / name)
    refuse(folder, "as a pickle", "get the model in Hugging Face format")


def test_pickles_are_converted_by_the_command_of_the_message(originals, tmp_path):
    folder = shutil.copytree(originals / "single", tmp_path / "a b")
    expected = load_file(folder / "model.safetensors")
    torch.save({name: torch.asarray(value) for name, value in expected.items()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refuse(folder, "as a pickle, which can run code and is not opened")
    with pytest.raises(InputError) as error:
        check_model(folder)
    command = str(error.value).partition("convert it: ")[2]
    python, option, program = shlex.split(command)
    assert (python, option) == ("python", "-c")
    with quiet_transformers():
        exec(program)
    assert check_model(folder).config.num_layers == 2
    found = load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, strict=True)


def test_no_weights(model):
    (model / "single" / "model.safetensors").unlink()
    refuse(model / "single", "holds no weights: it needs model.safetensors, or model.safetensors.index.json")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_is_not_waited_for(model, name):
    (model / "single" / name).unlink()
    os.mkfifo(model / "single" / name)
    refuse(model / "single", name)


def test_small_files_that_are_pipes_or_loops_are_left_out(originals, tmp_path):
    source = shutil.copytree(originals / "single", tmp_path / "in")
    os.mkfifo(source / "README.md")
    os.mkfifo(source / "tokenizer.json")
    (source / "LICENSE").symlink_to("LICENSE")
    facts = CardFacts("t", "s", "pi", identity(12), 128, 256)
    card = lambda place: write_card(place, facts, source)  # noqa: E731
    rescale_folder(source, tmp_path / "out", identity(12), context=256, provenance={}, extra_files=card)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "SHA256SUMS", "config.json", "generation_config.json", "model.safetensors"}


@pytest.mark.parametrize("metadata", [[], 3, "x", {"format": 3}, {"a": {"b": "c"}}])
def test_metadata_of_another_type(model, metadata):
    file = model / "single" / "model.safetensors"
    change_header(file, lambda text: json.dumps({**json.loads(text), "__metadata__": metadata}))
    refuse(model / "single", r"model\.safetensors")


def test_names_that_no_file_system_takes(model):
    change_index(model / "sharded", lambda names: names.update(dict.fromkeys(names, "n" * 300 + ".safetensors")))
    refuse(model / "sharded", "is missing")
    (model / "single" / "model.safetensors").unlink()
    (model / "single" / "model.safetensors").symlink_to("model.safetensors")
    refuse(model / "single", "holds no weights")


@pytest.mark.parametrize("base", [0.5, 1e300, "x", None, 10**400])
def test_a_base_that_no_export_records(model, base):
    path = model / "single" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_jax": {"base": base}}))
    refuse(model / "single", "base")
