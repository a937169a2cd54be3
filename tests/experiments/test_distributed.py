"""Runs of several processes: how they find one another, and that one signal ends them all behind the same step."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from configs import defaults
from experiments import distributed
from experiments.extend import extend
from experiments.signals import Terminated, deferred
from rope_jax.errors import InputError
from rope_jax.interop.huggingface import read_model
from rope_jax.training.loop import Stopped
from tests.experiments.helpers import write_texts

REPOSITORY = Path(__file__).resolve().parents[2]


def fields(**given):
    config = defaults.get_config()
    config.distributed.update(given)
    return config.distributed


PLAIN = {"coordinator": "host:1234", "processes": 2, "process": 1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "host:1234"}, r"distributed\.processes is missing"),
        ({"coordinator": "host:1234", "processes": 2}, r"distributed\.process is missing"),
        ({"processes": 2, "process": 0}, r"distributed\.coordinator is missing.*auto=True"),
        ({**PLAIN, "process": 2}, r"distributed\.process is 2: it must be from 0 to 1"),
        ({**PLAIN, "coordinator": "host"}, r"distributed\.coordinator is 'host': give HOST:PORT"),
        ({**PLAIN, "coordinator": ":80"}, r"distributed\.coordinator is ':80'"),
        ({**PLAIN, "auto": True}, r"coordinator.*processes.*process and config\.distributed\.auto are both set"),
        ({"local_devices": (0,)}, r"local_devices is set, but neither"),
    ],
)
def test_half_given_addresses(given, message):
    with pytest.raises(InputError, match=message):
        distributed.start(fields(**given), several=True)


def test_one_process_starts_nothing(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("started"))
    distributed.start(fields(), several=True)
    distributed.start(fields(), several=False)
    with pytest.raises(InputError, match="runs in one process"):
        distributed.start(fields(**PLAIN), several=False)


def test_what_jax_is_told_and_says(monkeypatch):
    told = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: told.update(given))
    distributed.start(fields(**PLAIN, local_devices=(0, 1), timeout=7), several=True)
    assert told["coordinator_address"] == "host:1234" and told["num_processes"] == 2 and told["process_id"] == 1
    assert told["local_device_ids"] == [0, 1] and told["initialization_timeout"] == 7

    def late(**given):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", late)
    with pytest.raises(InputError, match=r"did not find one another within .* = 300 s \(DEADLINE_EXCEEDED"):
        distributed.start(fields(**PLAIN), several=True)


def test_nothing_to_detect(monkeypatch):
    """JAX's own answer, as it comes where there is no cluster."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    monkeypatch.setattr("jax._src.clusters.GceTpuCluster.is_env_present", lambda: False)
    with pytest.raises(InputError, match=r"auto is set, but no Slurm.*\(coordinator_address should be defined"):
        distributed.start(fields(auto=True), several=True)


def test_signals_are_deferred_while_training():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    for number in (signal.SIGTERM, signal.SIGINT):
        with pytest.raises(Terminated, match="behind step 3") as caught, deferred() as should_stop:
            assert not should_stop()
            os.kill(os.getpid(), number)
            assert should_stop()
            raise Stopped("stopped behind step 3")
        assert caught.value.number == number
    # Another process was told, and this one stops with it.
    with pytest.raises(Terminated, match="behind step 4") as caught, deferred():
        raise Stopped("stopped behind step 4")
    assert caught.value.number == signal.SIGTERM
    # Behind the last step there is nothing left to save.
    with pytest.raises(Terminated), deferred():
        os.kill(os.getpid(), signal.SIGTERM)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


CONFIG = """
from tests.experiments.helpers import small_config

def get_config():
    config = small_config({texts!r})
    config.unlock()
    config.compare = ()
    config.pretrain.steps = 40
    config.pretrain.checkpoint_every = 30
    config.data.streams = 2
    return config
"""


def free_port(lowest=0):
    """A free port; not below `lowest`."""
    for port in range(lowest, 65536) if lowest else (0,):
        with socket.socket() as probe:
            try:
                probe.bind(("localhost", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise AssertionError("no free port")


def command(folder, config, *given, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.extend", f"--config={config}", f"--workdir={folder}", *given],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "4", **environment},
    )


@pytest.mark.slow
def test_two_processes_end_at_one_signal_and_go_on(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG.format(texts=str(write_texts(tmp_path / "texts"))))
    folder = tmp_path / "run"
    # As Slurm starts them: JAX finds the port in the number of the job, modulo 4096.
    port = free_port(lowest=61440 + os.getpid() % 4000)
    slurm = {"SLURM_JOB_ID": str(port - 61440), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    processes = [
        command(
            folder,
            tmp_path / "config.py",
            "--config.distributed.auto=True",
            **slurm,
            SLURM_PROCID=str(process),
            SLURM_LOCALID=str(process),
        )
        for process in range(2)
    ]
    metrics = folder / "pretrain" / "metrics.jsonl"
    while all(p.poll() is None for p in processes) and not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], said
    (saved,) = [int(path.name) for path in (folder / "pretrain" / "checkpoints").iterdir() if path.name.isdecimal()]
    assert 2 < saved < 40
    for text in said:
        assert f"stopped behind step {saved} of 40, which is saved; the same command goes on from what" in text
        assert "Traceback" not in text
    assert "a second signal stops at once" in said[1]

    # The same command goes on in one process with all devices.
    scope = {}
    exec((tmp_path / "config.py").read_text(), scope)
    results = extend(scope["get_config"](), folder, "run")
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 41))
    assert results["methods"]["dprope"]["after"]["perplexity"]["128"]["tokens"] == 2000


@pytest.mark.skipif(not os.environ.get("ROPE_JAX_LONG"), reason="takes a minute and a half: set ROPE_JAX_LONG=1")
@pytest.mark.slow
def test_a_whole_run_in_two_processes_is_that_of_one(tmp_path):
    config = CONFIG.format(texts=str(write_texts(tmp_path / "texts")))
    (tmp_path / "config.py").write_text(config)
    coordinator = f"localhost:{free_port()}"
    plain = [f"--config.distributed.coordinator={coordinator}", "--config.distributed.processes=2"]
    processes = [
        command(tmp_path / "two", tmp_path / "config.py", *plain, f"--config.distributed.process={process}")
        for process in range(2)
    ]
    ends = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert "numbers" in ends[0][0] and "numbers" not in ends[1][0]
    scope = {}
    exec(config, scope)
    one = extend(scope["get_config"](), tmp_path / "one", "one")
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    for stage in ("before", "after"):
        for window in ("64", "128"):
            a, b = (run["methods"]["dprope"][stage]["perplexity"][window]["perplexity"] for run in (one, two))
            # float32 sums in another order, through forty-four updates of Adam.
            assert b == pytest.approx(a, rel=1e-3)
    assert read_model(tmp_path / "two" / "export").config == read_model(tmp_path / "one" / "export").config


@pytest.mark.slow
def test_second_signal_stops_at_once():
    code = (
        "import time\nfrom experiments.signals import deferred\n"
        "with deferred():\n    print('ready', flush=True)\n    time.sleep(60)\n    time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    while "a second signal" not in child.stderr.readline():
        assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=30) == -signal.SIGTERM
