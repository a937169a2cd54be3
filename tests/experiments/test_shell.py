"""The command line: signals, and what a user reads and a script gets for what is wrong."""

import errno
import hashlib
import os
import signal
import sys
import threading

import pytest
from absl import flags

from experiments import door
from rope_jax.cli import shell
from rope_jax.cli.shell import Terminal, Terminated
from rope_jax.training.loop import NonFiniteLoss, Stopped
from tests.processes import REPOSITORY, python


def test_signals_are_deferred_while_training():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    deferred = Terminal().deferred_stop
    for number in (signal.SIGTERM, signal.SIGINT):
        with pytest.raises(Terminated, match="after step 3") as caught, deferred() as should_stop:
            assert not should_stop()
            os.kill(os.getpid(), number)
            assert should_stop()
            raise Stopped("stopped after step 3")
        assert caught.value.number == number
    # Another process was told, and this one stops with it.
    with pytest.raises(Terminated, match="after step 4") as caught, deferred():
        raise Stopped("stopped after step 4")
    assert caught.value.number == signal.SIGTERM
    # After the last step there is nothing left to save.
    with pytest.raises(Terminated), deferred():
        os.kill(os.getpid(), signal.SIGTERM)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_signal_is_answered_and_bounded_within_a_long_computation(monkeypatch):
    """While the main thread hashes, as while a device computes, Python runs no signal handler."""
    events = []
    monkeypatch.setattr(shell.os, "write", lambda file, text: events.append(text.decode()))
    monkeypatch.setattr(shell.os, "_exit", events.append)
    block, before = bytes(1 << 22), signal.signal(signal.SIGTERM, lambda *_: events.append("handled"))
    # Each call lets other threads run, and none returns to Python before its end.
    long = hashlib.pbkdf2_hmac
    try:
        with shell.answered_signals("stopping soon", grace=0.05):
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
            long("sha256", block, b"", 2_000_000)
            events.append("computed")
        with shell.answered_signals("nothing came"):
            pass
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "stopping soon; a second signal ends" in events[0] and "ended within a batch" in events[1]
    assert events[2:] == [128 + signal.SIGTERM, "handled", "computed"]


@pytest.mark.slow
def test_second_signal_stops_at_once():
    code = (
        "import time\nfrom rope_jax.cli.shell import Terminal\n"
        "with Terminal().deferred_stop():\n    print('ready', flush=True)\n    time.sleep(60)\n    time.sleep(60)\n"
    )
    with python("-c", code) as child:
        assert child.stdout and child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
        while child.stderr and "a second signal" not in child.stderr.readline():
            assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=30) == 128 + signal.SIGTERM


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (NonFiniteLoss("the loss is nan at step 3"), 1, "error: the loss is nan at step 3"),
        (KeyboardInterrupt(), 130, "stopped; the same command resumes from"),
        (Terminated(signal.SIGTERM, "stopped after step 3"), 143, "stopped after step 3; the same command resumes"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a/b"), 1, "error: the disk is full ([Errno 122] Disk quota"),
    ],
)
def test_exit_status(monkeypatch, capsys, tmp_path, error, status, said):
    def command(config, folder, name):
        assert (name, folder) == ("export", tmp_path)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", lambda *_: None)
        patch.setattr(door.flags, "FLAGS", flags.FlagValues())
        door.flags.DEFINE_string("workdir", str(tmp_path), "", flag_values=door.flags.FLAGS)
        door.flags.DEFINE_bool("debug", False, "", flag_values=door.flags.FLAGS)
        door.config_flags.DEFINE_config_file(
            "config", str(REPOSITORY / "configs/export.py"), flag_values=door.flags.FLAGS
        )
        door.flags.FLAGS(["command"])
        with pytest.raises(SystemExit) as caught:
            door._run(["command"], command, False)
    assert caught.value.code == status
    assert said in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
@pytest.mark.parametrize(
    ("argument", "config", "said"),
    [
        ("--nosuchflag=3", "", "Unknown command line flag 'nosuchflag'"),
        ("--config.train.steps=many", "", "flag --config.train.steps=many: invalid literal for int()"),
        ("--config.seed=1 --config=FILE", "", "--config.seed=1 comes before --config: give --config first"),
        ("--config=FILE", "def get_config(:", "--config: SyntaxError: invalid syntax (mine.py, line 1)"),
        ("--config=FILE", "import nowhere_at_all", "No module named 'nowhere_at_all' (FOLDER/mine.py:1)"),
        ("--config=configs/nowhere.py", "", "error: --config=configs/nowhere.py: there is no such file"),
        ("stray", "", "unexpected argument 'stray'"),
    ],
)
def test_flags_that_cannot_be_used_are_one_line(monkeypatch, capsys, tmp_path, argument, config, said):
    (tmp_path / "mine.py").write_text(config)
    arguments = argument.replace("FILE", str(tmp_path / "mine.py")).split()
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    monkeypatch.setattr(door.flags, "FLAGS", flags.FlagValues())
    door.config_flags.DEFINE_config_file("config", str(REPOSITORY / "configs/export.py"), flag_values=door.flags.FLAGS)
    with pytest.raises(SystemExit) as caught:
        door._run(door._parsed(sys.argv), lambda *_: pytest.fail("the command ran"), False)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1
    assert error.startswith("error: ") and said.replace("FOLDER", str(tmp_path)) in error


@pytest.mark.slow
def test_command_line(tmp_path):
    """What a user types: one message and a status for a wrong field, and for an unknown one."""
    for flag, said in (
        ("--config.solve.n_hat=7", "error: config.solve.n_hat is 7"),
        ("--config.solve.nhat=8", 'Did you mean "n_hat"'),
    ):
        with python("-m", "experiments.extend", f"--workdir={tmp_path}/run", flag) as process:
            error = process.communicate()[1]
        assert process.returncode != 0
        assert said in error
        assert "Traceback" not in error
        assert not (tmp_path / "run").exists()
