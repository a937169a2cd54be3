"""Advisory locks, which the system releases when the process that holds one ends, however it ends."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path


class Locked(Exception):
    """Another process holds a lock; the message says which."""


@contextlib.contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Holds the lock of a file, which is created with its folder and stays. A file system without locks has none.

    While it is locked the file says who holds it. Unless another process is to be waited for, one that holds it is a
    `Locked`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            raise Locked(_shown(file.read())) from None
        except OSError:  # some network file systems
            yield
            return
        file.truncate(0)
        began = time.strftime("%Y-%m-%d %H:%M:%S %z")
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": began}))
        file.flush()
        yield


def _shown(holder: str) -> str:
    try:
        found = json.loads(holder)
        return f"process {found['pid']} on {found['host']}, since {found['since']}"
    except (ValueError, KeyError, TypeError):  # it has just begun
        return "another process"
