"""Runs of several processes: one signal ends them all after the same step, and the results are those of one."""

import contextlib
import json
import os
import signal
import time

import pytest

from rope_jax.cli.extend import extend
from rope_jax.interop.huggingface import read_model
from tests.experiments.helpers import write_texts
from tests.processes import ended, free_port, python

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


@contextlib.contextmanager
def two_processes(folder, config, given):
    """The command in two processes of four devices; `given` has flags and variables of each."""
    with contextlib.ExitStack() as stack:
        flags = ("-m", "experiments.extend", f"--config={config}", f"--workdir={folder}")
        yield [
            stack.enter_context(python(*flags, *more, JAX_NUM_CPU_DEVICES="4", **environment))
            for more, environment in map(given, range(2))
        ]


def lines(file):
    return file.read_text().count("\n") if file.exists() else 0


@pytest.mark.slow
def test_two_processes_end_at_one_signal_and_resume(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG.format(texts=str(write_texts(tmp_path / "texts"))))
    folder = tmp_path / "run"
    # As Slurm starts them: JAX finds the port in the number of the job, modulo 4096.
    port = free_port(lowest=61440 + os.getpid() % 4000)
    slurm = {"SLURM_JOB_ID": str(port - 61440), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}

    def given(process):
        number = dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID"), str(process))
        return ["--config.distributed.auto=True"], slurm | number

    metrics = folder / "pretrain" / "metrics.jsonl"
    with two_processes(folder, tmp_path / "config.py", given) as processes:
        while all(process.poll() is None for process in processes) and lines(metrics) < 2:
            time.sleep(0.01)
        processes[1].send_signal(signal.SIGTERM)
        said = [error for _, error in ended(*processes, status=143)]
    (saved,) = [int(path.name) for path in (folder / "pretrain" / "checkpoints").iterdir() if path.name.isdecimal()]
    assert 2 < saved < 40
    for text in said:
        assert f"stopped after step {saved} of 40, which is saved; the same command resumes from" in text
        assert "Traceback" not in text
    assert "a second signal ends the process at once" in said[1]

    # The same command resumes in one process with all devices.
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
    plain = [f"--config.distributed.coordinator=localhost:{free_port()}", "--config.distributed.processes=2"]
    given = lambda process: ([*plain, f"--config.distributed.process={process}"], {})  # noqa: E731
    with two_processes(tmp_path / "two", tmp_path / "config.py", given) as processes:
        ends = ended(*processes)
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
