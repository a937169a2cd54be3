"""The run folder: records, and which config it belongs to."""

from types import SimpleNamespace

import pytest

from rope_jax.errors import InputError
from rope_jax.runs.disk import check_disk, needed_bytes
from rope_jax.runs.folder import RunFolder


def test_a_stage_is_computed_once(tmp_path):
    folder = RunFolder(tmp_path).at("methods/pi")
    assert folder.recorded("scale") is None
    made = folder.record("scale", lambda: {"factors": (1.0, 2.0)})
    assert made == {"factors": [1.0, 2.0]}
    assert folder.record("scale", lambda: pytest.fail("computed again")) == folder.recorded("scale") == made
    assert RunFolder(tmp_path).has("methods/pi/scale.json") and not folder.has("before.json")
    (folder / "scale.json").write_text('{"factors"')
    with pytest.raises(InputError, match=r"methods/pi/scale\.json is not valid JSON"):
        folder.recorded("scale")


def test_a_folder_belongs_to_one_config(tmp_path):
    folder = RunFolder(tmp_path / "run")
    config = {"seed": 0, "compare": (), "model": {"remat": "full", "dtype": "float32"}}
    folder.check(config)
    folder.check({**config, "seed": 1})  # not claimed yet
    folder.claim(config)
    folder.check({"seed": 0, "compare": ("pi",), "model": {"remat": "none", "dtype": "float32"}})
    with pytest.raises(
        InputError, match=r"`model\.dtype` is 'bfloat16', but .* has 'float32' \(and `seed`\)"
    ) as caught:
        folder.check({**config, "seed": 1, "model": {"remat": "full", "dtype": "bfloat16"}})
    assert caught.value.field == "model.dtype"
    folder.check({**config, "seed": 1}, may_change=("seed",))


def test_a_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to") as caught:
        RunFolder(tmp_path / "file" / "run").check({})
    assert caught.value.field == "folder"


def test_disk_counts_what_is_left_to_write(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    assert needed_bytes(folder, 100, 10, ("pi", "yarn"), keep=2) == 12 * 10 * 5 + 400
    folder.record("methods/pi/after", dict)
    assert needed_bytes(folder, 100, 10, ("pi", "yarn"), keep=2) == 12 * 10 * 3 + 400
    folder.record("methods/yarn/after", dict)
    assert needed_bytes(folder, 100, 10, ("pi", "yarn"), keep=2) == 0
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=0))
    check_disk(folder, 0)
    with pytest.raises(InputError, match=r"0\.0 GB free.*need") as caught:
        check_disk(folder, 1)
    assert caught.value.field == "folder"
