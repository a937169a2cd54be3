"""Gives malformed inputs to the functions that read them: `python -m tests.fuzz.run --seed 0 --inputs 1200`.

Each input must be refused by an `InputError` that names the file or the field, or be accepted and work. A process of
limited memory reads them one after another; it is replaced when it dies or does not answer.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path

SECONDS = 5  # of the processor
MEMORY = 500 << 20  # bytes beyond what the process had
LONGEST = 5000  # characters of a message
PATIENCE = 60  # seconds for one input, on a busy machine

# Events of Python's audit hooks that run or contact something.
_RUNNING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")
_WRITING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree")


def work(seed: int, home: Path, pipe: Connection) -> None:
    """Reads the inputs of the numbers that come through the pipe; sends `(class, name, finding)` for each."""
    os.environ |= {"TMPDIR": str(home / "tmp"), "HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    os.chdir(home / "cwd")

    from tests.fuzz.inputs.draw import input_of, warm_up

    folder, outside = home / "input", home / "outside"
    shutil.rmtree(home / "originals", ignore_errors=True)
    originals = warm_up(home / "originals")
    gc.collect()
    gc.freeze()
    watch = _Watch(allowed=(folder, home / "tmp"))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    # Far above MEMORY: address space that nobody touches, such as a mapped file, costs nothing.
    resource.setrlimit(resource.RLIMIT_AS, (used + (12 << 30), resource.RLIM_INFINITY))
    pipe.send(("", "ready", ""))
    while (number := pipe.recv()) is not None:
        case = input_of(seed, number)
        pipe.send((case.kind, case.name, ""))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if (originals / case.kind).is_dir():
            shutil.copytree(originals / case.kind, folder, dirs_exist_ok=True, symlinks=True)
        case.prepare(folder)
        before = _content(outside)
        with watch:
            finding = _answer(case, folder)
        for _ in range(2):
            gc.collect()
        # TFDS leaves an empty folder whenever it looks for what is known of a dataset.
        left = sorted(path.name for path in (home / "tmp").iterdir() if not path.name.endswith("tfds"))
        findings = [finding, *watch.findings]
        if _content(outside) != before:
            findings.append("a file outside was changed")
        if left:
            findings.append(f"left in the temporary folder: {left}")
            for path in (home / "tmp").iterdir():
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        pipe.send((case.kind, case.name, "; ".join(filter(None, findings))))


def _answer(case, folder: Path) -> str:
    """What is wrong with how an input was read; empty if nothing is."""
    from rope_jax.errors import InputError

    try:
        case.read(folder)
    except InputError as error:
        message = str(error)
        if case.answer == "accepted":
            return f"refused, and valid: {message[:300]}"
        if not (error.field or str(folder) in message):
            return f"the message names neither file nor field: {message[:300]}"
        return f"a message of {len(message)} characters: {message[:300]}" if len(message) > LONGEST else ""
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the tokenizers package panics
        return f"{type(error).__name__}: {str(error)[:300]}"
    return "accepted" if case.answer == "refused" else ""


class _Watch:
    """Measures time and memory of a block, and sees what Python writes, runs or contacts in it."""

    def __init__(self, allowed: tuple[Path, ...]):
        self.findings: list[str] = []
        self._allowed = tuple(map(str, allowed))
        self._on = False
        sys.addaudithook(self._seen)

    def __enter__(self) -> None:
        self.findings = []
        self._stop, self._most = threading.Event(), self._resident()
        self._least, self._began, self._on = self._most, time.process_time(), True
        self._thread = threading.Thread(target=self._measure)
        self._thread.start()

    def __exit__(self, *_) -> None:
        self._on = False
        seconds = time.process_time() - self._began
        self._stop.set()
        self._thread.join()
        if seconds > SECONDS:
            self.findings.append(f"{seconds:.1f} s")
        if self._most - self._least > MEMORY:
            self.findings.append(f"{self._most - self._least >> 20} MiB of memory")

    def _measure(self) -> None:
        while not self._stop.wait(0.02):
            self._most = max(self._most, self._resident())

    def _resident(self) -> int:
        # Pages of mapped files can be given back at any moment, and do not count.
        with open("/proc/self/statm", "rb") as file:
            _, resident, mapped, *_ = map(int, file.read().split())
        return (resident - mapped) * resource.getpagesize()

    def _seen(self, event: str, arguments: tuple) -> None:
        if not self._on:
            return
        if event in _RUNNING:
            self.findings.append(f"{event} {str(arguments)[:100]}")
        writes = event in _WRITING or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        # What is removed as part of a folder is named relative to that folder's descriptor.
        within = event in ("os.remove", "os.rmdir") and arguments[1] != -1
        if writes and not within and isinstance(arguments[0], str | bytes | os.PathLike):
            self._written(arguments[0])

    def _written(self, path) -> None:
        if not os.path.abspath(os.fsdecode(path)).startswith(self._allowed):
            self.findings.append(f"wrote {os.fsdecode(path)[:100]}")


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class _Worker:
    """A process that reads inputs."""

    def __init__(self, seed: int, home: Path):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(seed, home, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._receive(300)

    def _receive(self, seconds: float) -> tuple[str, str, str]:
        if not self._pipe.poll(seconds):
            raise TimeoutError
        return self._pipe.recv()

    def read(self, number: int) -> tuple[str, str, str]:
        self._pipe.send(number)
        kind, name, _ = self._receive(PATIENCE)
        try:
            return self._receive(PATIENCE)
        except TimeoutError:
            return kind, name, f"no answer within {PATIENCE} s"
        except EOFError:
            self._process.join()
            return kind, name, f"the process ended with {self._process.exitcode}"

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def findings(
    seed: int, inputs: Iterable[int], say: Callable[[str], object] = lambda line: None
) -> tuple[dict[str, int], list[str]]:
    """Reads the inputs of these numbers: how many of each class, and what is wrong with any, which `say` is told."""
    counts: collections.Counter[str] = collections.Counter()
    found = []
    with tempfile.TemporaryDirectory(prefix="rope-jax-fuzz-") as place, contextlib.ExitStack() as stack:
        home = Path(place).resolve()
        for name in ("outside", "tmp", "cwd"):
            (home / name).mkdir()
        (home / "outside" / "secret").write_text('{"secret": 1}')
        worker = _Worker(seed, home)
        stack.callback(lambda: worker.stop())
        for number in inputs:
            kind, name, finding = worker.read(number)
            counts[kind] += 1
            if finding:
                found.append(f"{number} {kind}: {name}: {finding}")
                say(found[-1])
            if finding.startswith(("no answer", "the process ended")):
                worker.stop()
                worker = _Worker(seed, home)
    return dict(counts), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, default=1200)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of inputs, to read them again")
    arguments = parser.parse_args()
    began = time.monotonic()
    counts, found = findings(
        arguments.seed, arguments.only or range(arguments.inputs), lambda line: print(line, flush=True)
    )
    print(", ".join(f"{kind} {count}" for kind, count in sorted(counts.items())))
    print(f"{sum(counts.values())} inputs in {time.monotonic() - began:.0f} s: {len(found)} findings")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
