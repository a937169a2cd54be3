"""What an exported folder holds, and that a failed export leaves nothing."""

import errno
import json
import os
import shutil
import subprocess
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoTokenizer

from rope_jax.errors import InputError
from rope_jax.interop import atomic
from rope_jax.interop.huggingface import read_model, write_model
from rope_jax.rope.embedding import ScaleVector
from tests.interop.references import write_random_llama


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model folder with a tokenizer, and with files that must not be copied."""
    folder = write_random_llama(tmp_path_factory.mktemp("source") / "model", pad_token_id=3)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "tokenizer.model").write_bytes(b"\x00\xff")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 128, "name": "caf\u00e9"}')
    (folder / "generation_config.json").write_text('{"do_sample": true}')
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def model(source):
    return read_model(source)


def export(folder, model, rope=None, **changes):
    arguments = {"context": 512, "provenance": {"method": "none"}} | changes
    write_model(folder, model.config, model.params, model.rope if rope is None else rope, **arguments)
    return json.loads((folder / "config.json").read_text())


def test_scaled_config(tmp_path, model):
    factors = np.linspace(1, 4, 6, dtype=np.float32)
    config = export(tmp_path / "out", model, ScaleVector.create(factors))
    block = config["rope_scaling"]
    assert block == {
        "rope_type": "longrope",
        "short_factor": [float(factor) for factor in factors],
        "long_factor": [float(factor) for factor in factors],
        "attention_factor": 1.0,
        "factor": 1.0,
        "original_max_position_embeddings": 512,
    }
    assert all(type(number) is float for number in block["short_factor"])
    assert config["rope_parameters"] == block | {"rope_theta": 10000.0}
    assert (config["rope_theta"], config["max_position_embeddings"]) == (10000.0, 512)
    assert "original_max_position_embeddings" not in config
    assert config["rope_jax"] == {"method": "none"}


def test_plain_config(tmp_path, model):
    config = export(tmp_path / "out", model)
    assert config["rope_scaling"] is None
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    # Nothing is known about a tokenizer, and transformers would otherwise assume 1 and 2.
    assert (config["bos_token_id"], config["eos_token_id"]) == (None, None)


def test_rows_per_layer_that_are_equal_are_one_vector(tmp_path, model):
    config = export(tmp_path / "out", model, ScaleVector.create(np.full((2, 6), 2.0)))
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize("rope", [((1.0,) * 6, (2.0,) * 6), ((2.0,) * 6,) * 2], ids=["factors", "attention factors"])
def test_a_vector_per_layer_is_refused(tmp_path, model, rope):
    with pytest.raises(InputError, match="differ from layer to layer") as error:
        export(tmp_path / "out", model, ScaleVector.create(rope, (1.0, 1.1)))
    assert error.value.field == "rope" and not (tmp_path / "out").exists()


def test_files_of_the_source_are_carried(tmp_path, source, model):
    config = export(tmp_path / "out", model, source=source)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "SHA256SUMS",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    for name in ("tokenizer.json", "tokenizer.model", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    # Engines that take the lower of the model's and the tokenizer's limit would cut the context off.
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings == {"model_max_length": 512, "name": "caf\u00e9"}
    assert config["pad_token_id"] == 3


def test_checksums(tmp_path, source, model):
    export(tmp_path / "out", model, source=source, extra_files=lambda folder: (folder / "README.md").write_text("card"))
    said = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "out", capture_output=True, text=True
    )
    names = sorted(path.name for path in (tmp_path / "out").iterdir() if path.name != "SHA256SUMS")
    assert "README.md" in names
    assert (said.returncode, said.stdout.splitlines()) == (0, [f"{name}: OK" for name in names])


def test_progress_counts_every_byte(tmp_path, model):
    seen = []
    export(tmp_path / "out", model, progress=lambda done, total: seen.append((done, total)))
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_tokenizer_of_an_export_loads(tmp_path, shared):
    from tests.interop.stories import write_stories260k

    stories = write_stories260k(shared / "data", tmp_path / "stories")
    model = read_model(stories)
    export(tmp_path / "out", model, source=stories, context=1024)
    before, after = (AutoTokenizer.from_pretrained(place) for place in (stories, tmp_path / "out"))
    assert after("Once upon a time").input_ids == before("Once upon a time").input_ids
    assert (before.model_max_length, after.model_max_length) == (512, 1024)


def test_dtype_of_an_export(tmp_path, model):
    config = export(tmp_path / "out", model, dtype="bfloat16")
    assert config["torch_dtype"] == "bfloat16"
    again = read_model(tmp_path / "out")
    assert again.config.param_dtype == "bfloat16"
    np.testing.assert_array_equal(again.params["embedding"], model.params["embedding"].astype(jnp.bfloat16))


def test_overwriting(tmp_path, model, source):
    export(tmp_path / "out", model)
    (tmp_path / "out" / "stale").touch()
    with pytest.raises(InputError, match="already exists: give another name, or set `overwrite`"):
        export(tmp_path / "out", model)
    assert (tmp_path / "out" / "stale").exists()
    export(tmp_path / "out", model, overwrite=True)
    assert not (tmp_path / "out" / "stale").exists()

    # A link is replaced, not what it points to.
    (tmp_path / "link").symlink_to(source)
    export(tmp_path / "link", model, overwrite=True)
    assert not (tmp_path / "link").is_symlink()
    assert (source / "config.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]


def test_links_inside_a_replaced_folder_are_not_followed(tmp_path, model):
    export(tmp_path / "out", model)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "letters").write_text("kept")
    (tmp_path / "out" / "folder").symlink_to(tmp_path / "precious")
    for name in ("model.safetensors", "config.json", "SHA256SUMS"):
        (tmp_path / "out" / name).unlink()
        (tmp_path / "out" / name).symlink_to(tmp_path / "precious" / "letters")
    export(tmp_path / "out", model, overwrite=True)
    assert (tmp_path / "precious" / "letters").read_text() == "kept"
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_leftovers_of_a_killed_export_are_removed(tmp_path, model):
    # And only those: a name may hold characters that mean something to a shell.
    for name in (".out[1].01234567.new", ".out1.01234567.new"):
        (tmp_path / name).mkdir()
    export(tmp_path / "out[1]", model)
    assert sorted(os.listdir(tmp_path)) == [".out1.01234567.new", "out[1]"]


def test_only_model_folders_are_replaced(tmp_path, model):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters").touch()
    with pytest.raises(InputError, match=r"holds no config\.json, so it is not replaced"):
        export(tmp_path / "home", model, overwrite=True)
    assert (tmp_path / "home" / "letters").exists()


def test_the_source_is_never_replaced(tmp_path, source, model):
    shutil.copytree(source, tmp_path / "copy")
    (tmp_path / "link").symlink_to(tmp_path / "copy")
    for target in (tmp_path / "copy", tmp_path / "link", tmp_path):
        with pytest.raises(InputError, match="holds the source model"):
            export(target, model, source=tmp_path / "copy", overwrite=True)
    assert (tmp_path / "copy" / "model.safetensors").exists()


def without(tree, *path):
    if len(path) == 1:
        return {key: value for key, value in tree.items() if key != path[0]}
    return tree | {path[0]: without(tree[path[0]], *path[1:])}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope": ScaleVector.create(np.arange(1, 13).reshape(2, 6))}, "differ from layer to layer"),
        ({"rope": ScaleVector.create(np.ones(5))}, r"factors of `rope` have shape \[5\]: this model needs \[6\]"),
        ({"rope": ScaleVector.create([1, 1, 1, 1, 1, np.inf])}, "not a positive finite number"),
        ({"rope": ScaleVector.create([1, 1, 1, 1, 1, -1])}, "not a positive finite number"),
        ({"rope": ScaleVector.create(np.ones(6), np.nan)}, "attention factor of `rope` is nan"),
        ({"context": 0}, "`context` is 0"),
        ({"context": 512.0}, r"`context` is 512.0"),
        ({"dtype": "float8"}, "`dtype` is 'float8': use one of float32, bfloat16, float16"),
        ({"provenance": {"vector": np.ones(3)}}, "`provenance` cannot be written as JSON"),
        ({"provenance": {"kl": float("nan")}}, "`provenance` cannot be written as JSON"),
        ({"source": "/nowhere"}, "`source` /nowhere is not a folder"),
    ],
)
def test_refused(tmp_path, model, changes, message):
    with pytest.raises(InputError, match=message) as error:
        export(tmp_path / "a" / "out", model, **changes)
    assert error.value.field in changes
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_another_model(tmp_path, model):
    params = without(model.params, "layers", "attention", "q")
    for wrong, message in (
        (params, "lacks layers/attention/q/kernel"),
        (model.params | {"bias": jnp.ones(3)}, "holds bias"),
        (model.params | {"head": jnp.ones((3, 4))}, r"head has shape \[3, 4\] where config asks for \[48, 96\]"),
        (model.params | {"head": jnp.ones((48, 96), jnp.int32)}, "`params` head is 'int32'"),
    ):
        with pytest.raises(InputError, match=message):
            write_model(tmp_path / "out", model.config, wrong, model.rope, context=8, provenance={})
    assert list(tmp_path.iterdir()) == []


def test_source_of_another_model(tmp_path, model):
    other = write_random_llama(tmp_path / "other", vocab_size=97)
    with pytest.raises(InputError, match=r"vocab_size 97 and the model 96"):
        export(tmp_path / "out", model, source=other)


def test_too_little_space_is_found_first(tmp_path, model, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"out needs 0.001 GB and \S+ has 0.000 GB free"):
        export(tmp_path / "new" / "out", model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existing", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize(
    ("raised", "expected", "said"),
    [
        (OSError(errno.ENOSPC, "No space left"), OSError, "No space left: '.*/out'"),
        (OSError(errno.EROFS, "Read-only file system"), InputError, "/out cannot be written .*Read-only file system"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_failure_midway_leaves_nothing_behind(tmp_path, model, existing, raised, expected, said):
    if existing:
        export(tmp_path / "out", model, provenance={"method": "before"})

    def fail(folder):
        assert len(os.listdir(tmp_path)) == 1 + existing  # the folder in the making
        raise raised

    with pytest.raises(expected, match=said):
        export(tmp_path / "out", model, overwrite=True, extra_files=fail)
    assert os.listdir(tmp_path) == ["out"] * existing
    if existing:
        assert read_model(tmp_path / "out").provenance == {"method": "before"}


def test_a_failing_rename_restores_the_old_folder(tmp_path, model, monkeypatch):
    export(tmp_path / "out", model, provenance={"method": "before"})

    def fail(path, target):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(atomic.Path, "replace", fail)
    with pytest.raises(InputError, match="cannot be written"):
        export(tmp_path / "out", model, overwrite=True)
    assert os.listdir(tmp_path) == ["out"]
    assert read_model(tmp_path / "out").provenance == {"method": "before"}


def test_values_that_the_dtype_cannot_hold(tmp_path, model):
    params = model.params | {"head": model.params["head"].at[0, 0].set(1e6)}
    with pytest.raises(InputError, match=r"lm_head.weight has values beyond the range of float16"):
        write_model(tmp_path / "out", model.config, params, model.rope, context=8, provenance={}, dtype="float16")
    assert list(tmp_path.iterdir()) == []
