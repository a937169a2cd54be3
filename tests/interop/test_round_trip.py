"""Hugging Face to parameters and back changes no byte; placement and dtype on the way in."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from rope_jax.interop.huggingface import read_model, write_model
from rope_jax.interop.weights import table
from rope_jax.model.llama import init_params
from rope_jax.rope.embedding import ScaleVector
from tests.interop.references import write_random_llama
from tests.processes import output


def stored_bytes(folder):
    """Every tensor as (dtype, shape, bytes), read by the reference implementation."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            for name in opened.keys():  # noqa: SIM118 - a safe_open is no mapping
                tensor = opened.get_tensor(name)
                assert name not in tensors
                raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
                tensors[name] = (tensor.dtype, tuple(tensor.shape), raw)
    return tensors


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shards", ["one", "many"])
def test_every_tensor_is_byte_equal(tmp_path, dtype, tied, shards):
    size = "5GB" if shards == "one" else "20KB"
    folder = write_random_llama(
        tmp_path / "in", dtype, size, tie_word_embeddings=tied, head_dim=6, num_key_value_heads=1
    )
    assert (folder / "model.safetensors.index.json").exists() == (shards == "many")
    model = read_model(folder)
    assert model.config.param_dtype == str(dtype).removeprefix("torch.")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.params)} == {model.config.param_dtype}
    limit = 5_000_000_000 if shards == "one" else 20_000
    for rope in (model.rope, ScaleVector.create([1.0, 2.0, 3.0])):
        write_model(
            tmp_path / "out",
            model.config,
            model.params,
            rope,
            context=256,
            provenance={},
            source=folder,
            overwrite=True,
            max_shard_bytes=limit,
        )
        assert (tmp_path / "out" / "model.safetensors.index.json").exists() == (shards == "many")
        assert stored_bytes(tmp_path / "out") == stored_bytes(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_every_parameter_of_the_model_is_in_the_table(tmp_path):
    for tied in (False, True):
        config = read_model(write_random_llama(tmp_path / str(tied), tie_word_embeddings=tied)).config
        boxed = jax.eval_shape(lambda config=config: init_params(config, jax.random.key(0)))
        shapes = {
            tuple(key.key for key in path[:-1]): leaf.shape  # the last key is the box with the logical axes
            for path, leaf in jax.tree_util.tree_flatten_with_path(boxed)[0]
        }
        assert shapes == {weight.path: weight.kept_shape(config) for weight in table(config)}


def test_special_values_survive(tmp_path):
    # Signed zeros, subnormals, infinities and NaN payloads are carried as they are.
    folder = write_random_llama(tmp_path / "in")
    tensors = load_file(folder / "model.safetensors")
    bits = tensors["model.layers.1.self_attn.q_proj.weight"].reshape(-1).view(np.uint32)
    bits[:5] = [0x80000000, 0x00000001, 0x7F800000, 0x7FC12345, 0xFF800000]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = read_model(folder)
    write_model(tmp_path / "out", model.config, model.params, model.rope, context=128, provenance={})
    assert stored_bytes(tmp_path / "out") == stored_bytes(folder)


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16", "float16"])
def test_param_dtype_converts_as_torch_does(tmp_path, param_dtype):
    folder = write_random_llama(tmp_path / "in")
    model = read_model(folder, param_dtype=param_dtype)
    assert model.config.param_dtype == param_dtype
    with safe_open(folder / "model.safetensors", framework="pt") as opened:
        stored = opened.get_tensor("model.layers.1.mlp.down_proj.weight")
    expected = stored.to(getattr(torch, param_dtype)).float().numpy().T
    np.testing.assert_array_equal(
        model.params["layers"]["feed_forward"]["down"]["kernel"][1].astype(jnp.float32), expected
    )


def test_parameters_arrive_in_their_shardings(tmp_path):
    folder = write_random_llama(tmp_path / "in", num_key_value_heads=4)
    whole = read_model(folder)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = {
        ("layers", "attention", "q", "kernel"): PartitionSpec(None, "data", "model"),
        ("layers", "attention", "o", "kernel"): PartitionSpec(None, "model", None, "data"),
        ("layers", "feed_forward", "up", "kernel"): PartitionSpec("data", None, "model"),
        ("embedding",): PartitionSpec(("data", "model")),
    }
    shardings = jax.tree_util.tree_map_with_path(
        lambda path, _: NamedSharding(mesh, specs.get(tuple(key.key for key in path), PartitionSpec())),
        whole.params,
    )
    seen = []
    sharded = read_model(folder, shardings, progress=lambda done, total: seen.append((done, total)))
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(whole.params))
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    assert jax.tree.map(lambda leaf: leaf.sharding, sharded.params) == shardings
    jax.tree.map(np.testing.assert_array_equal, sharded.params, whole.params)
    replicated = read_model(folder, NamedSharding(mesh, PartitionSpec()))
    jax.tree.map(np.testing.assert_array_equal, replicated.params, whole.params)
    # And out again, gathered tensor by tensor.
    write_model(tmp_path / "out", sharded.config, sharded.params, sharded.rope, context=128, provenance={})
    assert stored_bytes(tmp_path / "out") == stored_bytes(folder)


def test_parameters_may_be_donated(tmp_path):
    # Copies on several devices, and NumPy's memory, are one; a donation must not write into them.
    model = read_model(
        write_random_llama(tmp_path / "in"),
        NamedSharding(jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,)), PartitionSpec()),
    )
    before = jax.tree.map(np.array, model.params)
    after = jax.jit(lambda params: jax.tree.map(lambda x: x + 1, params), donate_argnums=0)(model.params)
    for was, now in zip(jax.tree.leaves(before), jax.tree.leaves(after)):
        for shard in now.addressable_shards:
            np.testing.assert_array_equal(shard.data, was + 1)


def test_symbolic_links_as_in_the_hub_cache_are_followed(tmp_path):
    folder = write_random_llama(tmp_path / "blobs", shard="20KB")
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = folder / f"{number:064x}"
        (snapshot / file.name).symlink_to(file.rename(blob))
    assert read_model(snapshot).config.num_layers == 2


def test_frequency_buffers_of_old_checkpoints_are_ignored(tmp_path):
    folder = write_random_llama(tmp_path / "in")
    before = read_model(folder)
    tensors = load_file(folder / "model.safetensors")
    for i in range(2):
        tensors[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = np.full(6, 7.0, np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    after = read_model(folder)
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)


def test_a_tied_model_may_store_its_head_too(tmp_path):
    folder = write_random_llama(tmp_path / "in", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, folder / "model.safetensors")
    assert "head" not in read_model(folder).params


def test_tensors_need_not_be_aligned(tmp_path):
    folder = write_random_llama(tmp_path / "in", torch.bfloat16)
    before = read_model(folder)
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip(b" ")
    header += b" " * (1 - len(header) % 2)  # the tensors' bytes start at an odd position
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    jax.tree.map(np.testing.assert_array_equal, read_model(folder).params, before.params)


@pytest.mark.slow
def test_neither_torch_nor_transformers_is_needed(tmp_path):
    folder = write_random_llama(tmp_path / "in", torch.bfloat16)
    script = (
        "import sys; from rope_jax.interop.huggingface import read_model, write_model\n"
        f"m = read_model({str(folder)!r})\n"
        f"write_model({str(tmp_path / 'out')!r}, m.config, m.params, m.rope, context=128, provenance={{}})\n"
        "sys.exit(sorted({'torch', 'transformers', 'tensorflow'} & set(sys.modules)) or 0)"
    )
    output("-c", script)
    assert stored_bytes(tmp_path / "out") == stored_bytes(folder)


def test_fresh_parameters_export_too(tmp_path):
    config = read_model(write_random_llama(tmp_path / "in")).config
    params = nn.unbox(jax.jit(lambda: init_params(config, jax.random.key(0)))())
    rope = ScaleVector.create(np.ones(config.head_dim // 2))
    write_model(tmp_path / "out", config, params, rope, context=128, provenance={})
    again = read_model(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    assert again.config == config
