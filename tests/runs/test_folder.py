"""The run folder: records, and which config it belongs to."""

import errno
import os
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


@pytest.mark.parametrize("content", ['{"factors"', "[]", "{}", "null", "1" * 5000, '{"factors": "CHECKSUM"}'])
def test_a_damaged_record_is_named_with_the_way_out(tmp_path, content):
    folder = RunFolder(tmp_path)
    folder.record("scale", lambda: {"factors": [1.0, 2.0]})
    path = folder / "scale.json"
    checksum = path.read_text().replace("2.0", "2.5")  # one bit of the content
    path.write_text(checksum if "CHECKSUM" in content else content)
    with pytest.raises(
        InputError, match=r"/scale\.json is damaged, .*: delete it, and the same command makes it again"
    ):
        folder.recorded("scale")
    path.unlink()
    assert folder.record("scale", lambda: {"factors": [3.0]}) == {"factors": [3.0]}


@pytest.mark.parametrize("content", ["{", "[]", '"text"', "null", "[" * 9999])
def test_a_damaged_config_is_named_with_the_way_out(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"/config\.json is damaged: delete it if the run has this config"):
        RunFolder(tmp_path).check({"seed": 0})


def test_a_folder_is_held_by_one_command(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        with (
            pytest.raises(InputError, match=rf"where another command is running \(process {os.getpid()} on ") as caught,
            folder.locked(),
        ):
            pass
        assert caught.value.field == "folder"
    with folder.locked():
        pass


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.ELOOP])
def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch, error):
    folder = RunFolder(tmp_path)
    folder.record("scale", lambda: {"factors": [1.0]})

    def refuse(*_, **__):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(InputError, match=rf"cannot be written to \({os.strerror(error)}") as caught, folder.locked():
        pass
    assert caught.value.field == "folder"


def test_a_folder_that_is_a_loop_of_links(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=r"/loop, which cannot be written to"), RunFolder(tmp_path / "loop").locked():
        pass


def test_a_run_keeps_to_its_texts(tmp_path):
    folder = RunFolder(tmp_path)
    folder.check_texts("one")  # it has not begun
    folder.claim({}, "one")
    folder.check_texts("one")
    with pytest.raises(InputError, match=r"not the texts that the run in .* began with") as caught:
        folder.check_texts("two")
    assert caught.value.field == "path"


def test_a_record_of_something_else_is_set_aside(tmp_path):
    folder, said = RunFolder(tmp_path), []
    of = {"vector": "1", "texts": "2"}
    assert folder.recorded("before", of, said.append) is None
    made = folder.record("before", lambda: {"perplexity": 5.0, "of": of})
    assert folder.recorded("before", dict(of), said.append) == made and not said
    assert folder.recorded("before", {**of, "texts": "3"}, said.append) is None
    assert "before.json is of another texts: measured anew" in said.pop()
    assert not folder.has("before.json") and folder.recorded("before.old1") == made
    # A record of a version that did not say what it is of.
    folder.record("before", lambda: {"perplexity": 5.0})
    assert folder.recorded("before", of, said.append) is None
    assert "is of another vector, texts: measured anew; the old file is now before.old2.json" in said.pop()


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


def test_a_field_that_the_folder_does_not_know_has_its_default(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim({"seed": 0, "train": {"steps": 5}})
    later = {"seed": 0, "train": {"steps": 5, "lengths": (1, 2)}}
    defaults = {"train.lengths": (1, 2), "train.positions": "all"}
    folder.check(later, defaults=defaults)
    with pytest.raises(InputError, match=r"`train\.lengths` is \[3\], but .* has \[1, 2\]") as caught:
        folder.check({"seed": 0, "train": {"steps": 5, "lengths": (3,)}}, defaults=defaults)
    assert caught.value.field == "train.lengths"


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
