"""Checkpoints: damage is noticed and passed over, the newest and the best are kept, stops are saved."""

import dataclasses
import errno
import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rope_jax.errors import InputError
from rope_jax.sharding import make_mesh
from rope_jax.training import checkpoints
from rope_jax.training.checkpoints import Checkpoints, fingerprint, losses, read_trained
from rope_jax.training.finite import NonFiniteLoss
from rope_jax.training.loop import Stopped
from rope_jax.training.state import TrainState
from rope_jax.training.update import Training
from tests.training.helpers import CONFIG, ONE, ROPE, RUN, fit, identical

KEEP = dataclasses.replace(RUN, keep=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run with checkpoints 2, 4 and 6, and its parameters."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(folder, KEEP).model


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path, place=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 0x10
    path.write_bytes(bytes(content))


def replace(path, old, new):
    content = path.read_text()
    assert content.count(old) == 1
    path.write_text(content.replace(old, new))


DAMAGE = {
    # One bit of a digit.
    "another data position": lambda step: replace(step / "data" / "metadata", '"number": 6', '"number": 4'),
    "another loss": lambda step: replace(step / "data" / "metadata", '"loss": 4', '"loss": 5'),
    "deleted tensors": lambda step: largest(step / "state" / "ocdbt.process_0").unlink(),
    "truncated tensors": lambda step: truncate(largest(step / "state" / "d")),
    "empty manifest": lambda step: (step / "state" / "manifest.ocdbt").write_bytes(b""),
    "empty metadata": lambda step: (step / "state" / "_METADATA").write_bytes(b""),
    "empty data position": lambda step: (step / "data" / "metadata").write_bytes(b""),
    "deleted state": lambda step: shutil.rmtree(step / "state"),
    "deleted data position": lambda step: shutil.rmtree(step / "data"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_newest_gives_way_to_the_one_before(whole, tmp_path, damage):
    folder, expected = whole
    shutil.copytree(folder, tmp_path / "run")
    damage(tmp_path / "run" / "6")
    with pytest.warns(UserWarning, match=r"checkpoint .*/run/6 is damaged \(.*resuming from step 4.*damaged-6-1"):
        resumed = fit(tmp_path / "run", KEEP)
    assert resumed.start == 4
    assert identical(resumed.model, expected)
    # The step was saved again where the damaged one lay, and serves the next start.
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert fit(tmp_path / "run", KEEP).start == 6
    assert (tmp_path / "run" / "damaged-6-1").is_dir()


def test_any_flipped_bit_is_noticed(whole, tmp_path):
    """Storage gives back other numbers without an error: in every file of the checkpoint that matters."""
    folder, expected = whole
    noticed = 0
    for file in sorted((folder / "6").rglob("*")):
        if file.stat().st_size < 10_000 or not file.is_file():
            continue
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "run")
        flip_a_bit(tmp_path / "run" / file.relative_to(folder))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            resumed = fit(tmp_path / "run", KEEP)
        assert identical(resumed.model, expected), file
        noticed += resumed.start == 4
    # The rest is in files that restoring does not need.
    assert noticed >= 2


def test_an_export_notices_any_flipped_bit(whole, tmp_path):
    """It reads the weights alone: those that were saved, or none."""
    folder, expected = whole
    abstract = Training(CONFIG, KEEP, ONE).abstract_state(ROPE).params
    step = shutil.copytree(folder / "6", tmp_path / "6")
    said = []
    for file in sorted(path for path in step.rglob("*") if path.is_file() and path.stat().st_size >= 10_000):
        content = file.read_bytes()
        for eighth in range(1, 16, 2):
            flip_a_bit(file, len(content) * eighth // 16)
            try:
                assert identical(read_trained(tmp_path, abstract, 6), expected.params), file
            except InputError as error:
                said.append(str(error))
            file.write_bytes(content)
    assert any("differs from what was saved): take another step" in text for text in said)


def test_any_changed_byte_of_the_record_is_noticed(whole, tmp_path):
    record = shutil.copytree(whole[0] / "6" / "data", tmp_path / "6" / "data") / "metadata"
    content = record.read_bytes()
    meaning, expected = json.loads(content), losses(tmp_path)
    assert expected.keys() == {6}
    for place in range(0, len(content), 17):
        changed = bytearray(content)
        changed[place] ^= 1
        record.write_bytes(bytes(changed))
        # JSON can say the same in other words.
        assert losses(tmp_path) == (expected if json_of(bytes(changed)) == meaning else {}), place


def json_of(content):
    try:
        return json.loads(content)
    except ValueError:
        return None


def state_of(value):
    return TrainState(jnp.int32(value), {"w": jnp.full((4,), value, jnp.float32)}, ())


def test_what_is_not_finite_is_not_saved_and_not_restored(tmp_path, monkeypatch):
    poisoned = dataclasses.replace(state_of(2), params={"w": jnp.array([1, jnp.inf, 2, 3], jnp.float32)})
    with Checkpoints(tmp_path, keep=2) as saving:
        saving.save(state_of(1), {"at": 1}, 1.0)
        with pytest.raises(NonFiniteLoss, match=r"step 2 makes params\.w not finite"):
            saving.save(poisoned, {"at": 2}, 1.0)
        examined = checkpoints._examined
        with monkeypatch.context() as patch:  # as earlier versions did
            patch.setattr(checkpoints, "_examined", lambda tree: (examined(tree)[0], []))
            saving.save(poisoned, {"at": 2}, 1.0)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), state_of(0))
    with pytest.raises(InputError, match=r"/2 cannot be read \(params\.w is not finite\): take another step"):
        read_trained(tmp_path, abstract.params, 2)
    with Checkpoints(tmp_path) as reading, pytest.warns(UserWarning, match=r"/2 is damaged \(params\.w is not finite"):
        state, progress = reading.restore(abstract)
    assert identical(state, state_of(1)) and progress == {"at": 1}


def test_two_damaged_ones(whole, tmp_path):
    folder, expected = whole
    shutil.copytree(folder, tmp_path / "run")
    for step in ("4", "6"):
        truncate(tmp_path / "run" / step / "state" / "_METADATA")
    with pytest.warns(UserWarning) as caught:
        assert identical(fit(tmp_path / "run", KEEP).model, expected)
    said = [str(warning.message) for warning in caught]
    assert [f"/run/{step} is damaged" in text for step, text in zip((6, 4), said)] == [True, True]


def test_all_damaged_is_said_and_nothing_moved(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    for step in ("2", "4", "6"):
        shutil.rmtree(tmp_path / "run" / step / "state")
    with pytest.raises(InputError, match=r"checkpoint .*/run/6 cannot be read .*delete that folder"):
        fit(tmp_path / "run", KEEP)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"2", "4", "6"}


def test_a_full_disk_is_said_and_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    """Orbax 0.12 raises what is quoted here."""
    with Checkpoints(tmp_path, keep=1) as saving:
        saving.save(state_of(1), {"at": 1}, 1.0)
    with Checkpoints(tmp_path, keep=1) as saving:

        def fail(*_, **__):
            (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
            raise ValueError("RESOURCE_EXHAUSTED: ... No space left on device [os_error_code='28']")

        monkeypatch.setattr(saving._manager, "save", fail)
        with pytest.raises(OSError, match="No space left on device") as caught:
            saving.save(state_of(2), {"at": 2}, 1.0)
        assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path)
    assert losses(tmp_path) == {1: 1.0}


def test_newest_and_best_are_kept(tmp_path):
    order = [5.0, 1.0, 3.0, 2.0, 4.0, 4.0, 6.0]

    for step, loss in enumerate(order, 1):
        # Another manager each time, as if the run were started again.
        with Checkpoints(tmp_path, keep=2, keep_best=2) as saving:
            saving.save(state_of(step), {"at": step}, loss)
    assert losses(tmp_path) == {2: 1.0, 4: 2.0, 6: 4.0, 7: 6.0}
    # A record that cannot be read is not among the best, and in nobody's way.
    (tmp_path / "2" / "data" / "metadata").write_bytes(b"")
    with Checkpoints(tmp_path, keep=1, keep_best=1) as saving:
        saving.save(state_of(8), {"at": 8}, 9.0)
    assert losses(tmp_path) == {4: 2.0, 8: 9.0}


def test_loss_of_a_checkpoint_is_the_mean_since_the_one_before(tmp_path):
    seen = dict(enumerate(fit(tmp_path, KEEP).losses, 1))
    for step, loss in losses(tmp_path).items():
        assert loss == pytest.approx((seen[step - 1] + seen[step]) / 2, rel=1e-12)


def test_fingerprint_is_the_same_on_every_mesh_and_of_every_bit():
    key = jax.random.key(0)
    values = {
        "a": jax.random.normal(key, (16, 8, 6)),
        "b": jax.random.normal(key, (8, 16)).astype(jnp.bfloat16),
        "c": jnp.int32(-7),
    }
    # Python's integers, by the definition.
    expected = []
    for leaf, unsigned in ((values["a"], np.uint32), (values["b"], np.uint16), (values["c"], np.uint32)):
        bits = np.atleast_1d(np.asarray(leaf)).view(unsigned).ravel().tolist()
        expected.append(sum((2 * i + 1) * b for i, b in enumerate(bits)) % 2**32)
    assert fingerprint(values) == dict(zip("abc", expected))
    spread = jax.sharding.NamedSharding(make_mesh(2, 2, 2), jax.sharding.PartitionSpec(("data", "tensor"), "fsdp"))
    assert fingerprint({**values, "a": jax.device_put(values["a"], spread)}) == fingerprint(values)
    first, *others = fingerprint({**values, "a": values["a"][::-1]}).values()
    assert first != expected[0] and others == expected[1:]


@pytest.mark.parametrize("asked", [1, 3, 5])
def test_stop_saves_and_resumes_bitwise(whole, tmp_path, asked):
    seen = []

    def should_stop(reported):
        seen[:] = reported.steps
        return len(seen) >= asked

    with pytest.raises(Stopped, match=rf"stopped after step {asked + 1} of 6, which is saved"):
        fit(tmp_path, KEEP, should_stop=should_stop)
    # The step that was under way when it was asked, and none after.
    assert max(losses(tmp_path)) == asked + 1 == seen[-1] + 1
    resumed = fit(tmp_path, KEEP)
    assert resumed.start == asked + 1
    assert identical(resumed.model, whole[1])
    # The mean loss does not depend on the stop.
    assert losses(tmp_path)[6] == losses(whole[0])[6]


def test_saved_position_is_json(whole):
    data = json.loads((whole[0] / "6" / "data" / "metadata").read_text())
    assert data["progress"]["batches"] == {"number": 6}
    assert len(data["progress"]["losses"]) == 2
