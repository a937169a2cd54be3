"""Advisory locks: one holder, which is named, and none after its death."""

import os
import threading

import pytest

from rope_jax.lock import Locked, locked
from tests.processes import python

HOLD = """
import sys, time
from pathlib import Path
from rope_jax.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_system_releases_the_lock_of_a_killed_process(tmp_path):
    path = tmp_path / "folder" / ".lock"
    with python("-c", HOLD, path) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(Locked, match=rf"process {process.pid} on {os.uname().nodename}, since 20"), locked(path):
            pass
    with locked(path):
        pass


def test_one_waits_for_the_other(tmp_path):
    order = []

    def second():
        with locked(tmp_path / ".lock", wait=True):
            order.append("second")

    with locked(tmp_path / ".lock"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
