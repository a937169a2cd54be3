"""How the processes of a run find one another; runs of several processes are in tests/experiments."""

import os

import jax
import pytest

from rope_jax.errors import InputError
from rope_jax.multihost import Processes
from tests.processes import ended, python

PLAIN = {"coordinator": "host:1234", "processes": 2, "process": 1}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"coordinator": "host:1234"}, "processes"),
        ({"coordinator": "host:1234", "processes": 2}, "process"),
        ({"processes": 2, "process": 0}, "coordinator"),
        ({**PLAIN, "process": 2}, "process"),
        ({**PLAIN, "coordinator": "host"}, "coordinator"),
        ({**PLAIN, "coordinator": ":80"}, "coordinator"),
        ({**PLAIN, "auto": True}, "coordinator"),
        ({"local_devices": (0,)}, "local_devices"),
    ],
)
def test_half_given_addresses(given, field):
    with pytest.raises(InputError) as caught:
        Processes(**given)
    assert caught.value.field == field


def test_one_process_connects_to_none(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("started"))
    Processes().connect()
    Processes().connect(several=False)
    with pytest.raises(InputError, match="runs in one process") as caught:
        Processes(**PLAIN).connect(several=False)
    assert caught.value.field == "coordinator"


def test_what_jax_is_told_and_says(monkeypatch):
    told = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: told.update(given))
    Processes(**PLAIN, local_devices=(0, 1), timeout=7).connect()
    assert told["coordinator_address"] == "host:1234" and told["num_processes"] == 2 and told["process_id"] == 1
    assert told["local_device_ids"] == [0, 1] and told["initialization_timeout"] == 7

    def late(**given):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", late)
    with pytest.raises(InputError, match=r"within `timeout` = 300 s \(DEADLINE_EXCEEDED"):
        Processes(**PLAIN).connect()


def test_nothing_to_detect(monkeypatch):
    def undetected(**given):
        assert given["coordinator_address"] is None
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", undetected)
    with pytest.raises(InputError, match=r"no Slurm.*\(coordinator_address should be defined") as caught:
        Processes(auto=True).connect()
    assert caught.value.field == "auto"


@pytest.mark.slow
def test_jax_says_so_where_there_is_no_cluster(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_")):
            monkeypatch.delenv(name)
    with python("-c", "from rope_jax.multihost import Processes\nProcesses(auto=True).connect()") as process:
        ((_, error),) = ended(process, status=1)
    assert "InputError: `auto` is set, but no Slurm" in error
    assert "(coordinator_address should be defined" in error
