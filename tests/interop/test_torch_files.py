"""`pytorch_model.bin` as PyTorch writes it, and as an attacker does: nothing in it is ever executed."""

import json
import pickle
import re
import subprocess
import sys
import zipfile
from collections import OrderedDict

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from rope_jax.errors import InputError
from rope_jax.interop.huggingface import check_model, read_model
from rope_jax.interop.rescale import rescale_folder
from rope_jax.interop.torch_files import read_torch_header
from rope_jax.rope.embedding import ScaleVector
from tests.interop.references import quiet_transformers, write_random_llama
from tests.interop.test_round_trip import stored_bytes


def as_bin(folder, change=lambda tensors: tensors, **how):
    """Replaces a folder's safetensors file by PyTorch's format."""
    tensors = change(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", **how)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("protocol", [2, 4])
def test_the_same_model_as_from_safetensors(tmp_path, dtype, protocol):
    original = write_random_llama(tmp_path / "in", dtype, tie_word_embeddings=True)
    whole, expected = read_model(original), stored_bytes(original)

    def with_views(tensors):
        # As in published files: a tied head that shares its storage, parameters, a part of a storage, a buffer.
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        tensors["model.norm.weight"] = torch.nn.Parameter(tensors["model.norm.weight"])
        both = torch.cat([tensors[f"model.layers.{i}.input_layernorm.weight"] for i in range(2)])
        tensors["model.layers.1.input_layernorm.weight"] = both[48:]
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
        return tensors

    folder = as_bin(original, with_views, pickle_protocol=protocol)
    model = read_model(folder)
    assert (model.config, model.source_dtype) == (whole.config, whole.source_dtype)
    jax.tree.map(np.testing.assert_array_equal, model.params, whole.params)
    rescale_folder(folder, tmp_path / "out", model.rope, context=128, provenance={})
    assert stored_bytes(tmp_path / "out") == expected
    rescale_folder(folder, tmp_path / "folded", ScaleVector.create(np.ones(6), 1.2), context=128, provenance={})
    name = "model.layers.1.self_attn.q_proj.weight"
    folded = load_file(tmp_path / "folded" / "model.safetensors")[name]
    before = load_file(tmp_path / "out" / "model.safetensors")[name]
    assert torch.equal(folded, (before.float() * np.float32(1.2)).to(dtype))


def test_state_of_a_module_in_several_files(tmp_path):
    # A state dictionary keeps the versions of its modules as an attribute.
    folder = write_random_llama(tmp_path / "in")
    expected = read_model(folder).params
    with quiet_transformers():
        state = transformers.LlamaForCausalLM.from_pretrained(folder).state_dict()
    assert state._metadata
    (folder / "model.safetensors").unlink()
    places = {}
    for number in (1, 2):
        part = OrderedDict((name, tensor) for i, (name, tensor) in enumerate(state.items()) if i % 2 == number - 1)
        part._metadata = state._metadata
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save(part, folder / file)
        places |= dict.fromkeys(part, file)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    jax.tree.map(np.testing.assert_array_equal, read_model(folder).params, expected)

    index.write_text(json.dumps({"weight_map": places | {"model.norm.weight": "../pytorch_model-00001-of-00002.bin"}}))
    with pytest.raises(InputError, match=r"only \.bin files of the folder itself"):
        check_model(folder)


def test_torch_is_not_needed(tmp_path):
    folder = as_bin(write_random_llama(tmp_path / "in"))
    script = (
        f"import sys; from rope_jax.interop.huggingface import read_model; read_model({str(folder)!r})\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


class Bomb:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def repack(file, change):
    """Writes an archive anew, `change` being given the list of (member, bytes)."""
    with zipfile.ZipFile(file) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in change(members):
            archive.writestr(name, data)


def with_pickle(file, data):
    repack(file, lambda members: [(n, data if n.endswith("data.pkl") else d) for n, d in members])


def bombs(fuse):
    """Pickles that create the file `fuse` when they are loaded."""
    opened = Bomb(open, str(fuse), "w")
    yield "a value", pickle.dumps({"model.norm.weight": opened}, 2)
    yield "a key", pickle.dumps({opened: 1}, 2)
    yield "on the side", pickle.dumps((opened, {}), 2)
    yield "by its new name", pickle.dumps({"model.norm.weight": opened}, 4)
    command = f"touch {fuse}".encode()
    yield "os.system", b"cos\nsystem\n(X" + len(command).to_bytes(4, "little") + command + b"tR."
    yield "an instance", b"(X" + len(command).to_bytes(4, "little") + command + b"ios\nsystem\n."
    yield "an object", b"(cos\nsystem\nX" + len(command).to_bytes(4, "little") + command + b"o."
    yield "after the end", pickle.dumps({}, 2) + pickle.dumps(opened, 2)
    yield (
        "hidden in a dictionary's state",
        (
            b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00acbuiltins\nopen\nX"
            + len(str(fuse)).to_bytes(4, "little")
            + str(fuse).encode()
            + b"X\x01\x00\x00\x00w\x86Rsb."
        ),
    )


@pytest.mark.parametrize("number", range(9))
def test_no_pickle_is_executed(tmp_path, number):
    fuse = tmp_path / "exploded"
    name, data = list(bombs(fuse))[number]
    if name != "after the end":  # which no loader reaches
        pickle.loads(data)
        assert fuse.exists(), "the bomb does not work, and the test would prove nothing"
        fuse.unlink()
    folder = as_bin(write_random_llama(tmp_path / "in"))
    with_pickle(folder / "pytorch_model.bin", data)
    for attempt in (check_model, read_model):
        with pytest.raises(InputError) as error:
            attempt(folder)
        assert str(folder) in str(error.value)
    assert not fuse.exists()


def test_other_objects_are_named(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    for content, message in (
        ({"a": 3}, "no tensor under the name 'a'"),
        ({"model": {"a": torch.ones(3)}}, "no tensor under the name 'model'"),
        ([torch.ones(3)], "the pickle opcode EMPTY_LIST"),
        ({"a": Bomb(print, "x")}, r"a call of 'builtins.print'|'__builtin__.print'"),
        (torch.nn.Linear(2, 2), "a call of 'torch.nn.modules.linear.Linear'"),
        ({"a": torch.ones(3).to_sparse()}, "a call of 'torch._utils._rebuild_sparse_tensor'"),
    ):
        torch.save(content, file)
        with pytest.raises(InputError, match=message) as error:
            read_torch_header(file)
        assert "was not executed" in str(error.value)


def test_layouts_that_are_not_rows(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(3, 4).T}, file)
    with pytest.raises(InputError, match="tensor a is stored transposed"):
        read_torch_header(file)
    torch.save({"a": torch.ones(3, 1).T, "b": torch.ones(()), "c": torch.ones(0, 2)}, file)
    assert [tensor.shape for tensor in read_torch_header(file)] == [(1, 3), (), (0, 2)]


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_truncated(tmp_path, keep):
    file = as_bin(write_random_llama(tmp_path / "in")) / "pytorch_model.bin"
    data = file.read_bytes()
    file.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(InputError, match=re.escape(str(file)) + " is truncated"):
        read_torch_header(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: [(n, d[:-4] if n.endswith("data/0") else d) for n, d in m], "does not fit into its storage"),
        (lambda m: [(n, d) for n, d in m if not n.endswith("data/0")], "lacks the bytes of tensor a"),
        (lambda m: [(n, d) for n, d in m if not n.endswith("data.pkl")], "holds 0 pickles"),
        (lambda m: [*m, ("other/data.pkl", b"")], "holds 2 pickles"),
        (lambda m: [(n, b"big" if n.endswith("byteorder") else d) for n, d in m], "big-endian"),
        (lambda m: [(n, d[:40] if n.endswith("data.pkl") else d) for n, d in m], "its pickle is malformed"),
        (lambda m: [(n, b"." if n.endswith("data.pkl") else d) for n, d in m], "its pickle is malformed"),
        (lambda m: [(n, b"0." if n.endswith("data.pkl") else d) for n, d in m], "the pickle opcode POP"),
    ],
)
def test_corrupt(tmp_path, change, message):
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(4)}, file)
    repack(file, change)
    with pytest.raises(InputError, match=message) as error:
        read_torch_header(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(("what", "by"), [(b"K\x04\x85", b"K\x05\x85"), (b"K\x00K\x04\x85", b"K\x01K\x04\x85")])
def test_tensors_that_reach_out_of_their_storage(tmp_path, what, by):
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(4)}, file)
    repack(file, lambda m: [(n, d.replace(what, by) if n.endswith("data.pkl") else d) for n, d in m])
    with pytest.raises(InputError, match=r"does not fit into its storage|malformed"):
        read_torch_header(file)


def test_compressed_members(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(400)}, file)
    with zipfile.ZipFile(file) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    with pytest.raises(InputError, match="is compressed or encrypted"):
        read_torch_header(file)


def test_files_older_than_the_format(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(4)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"no zip archive as PyTorch writes it since 1\.6"):
        read_torch_header(file)
