"""A new file whose checksum is computed while it is written.

The checksum costs as much as writing: computed afterwards it would double the time of an export.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

# Bytes per write, and pieces in flight: enough that reading and summing continue while the disk stalls the writer, few
# enough that memory is reused; memory that the system hands out for the first time is slow.
PIECE_BYTES = 8 << 20
PIECES = 40


class SummedFile:
    """A new file that is filled in pieces; one thread writes them while another computes the SHA-256.

    A piece that cannot be written is an `OSError` of one of the later calls.
    """

    def __init__(self, path: Path):
        self._stream = path.open("xb", buffering=0)
        self._hash = hashlib.sha256()
        self._writer, self._summer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._pieces: deque[tuple[np.ndarray, list[Future]]] = deque(
            (np.empty(PIECE_BYTES, np.uint8), []) for _ in range(PIECES)
        )

    def append(self, count: int, fill: Callable[[np.ndarray], None]) -> None:
        """Appends `count` bytes, at most `PIECE_BYTES`; `fill` writes them into the array that it is given."""
        piece, users = self._pieces.popleft()
        for user in users:
            user.result()
        view = piece[:count]
        fill(view)
        users = [self._writer.submit(self._write, view), self._summer.submit(self._hash.update, view.data)]
        self._pieces.append((piece, users))

    def write(self, data: bytes) -> None:
        """Appends bytes that are in memory already."""
        for start in range(0, len(data), PIECE_BYTES):
            part = np.frombuffer(data[start : start + PIECE_BYTES], np.uint8)
            self.append(len(part), lambda piece, part=part: np.copyto(piece, part))

    def finish(self) -> str:
        """Waits until all is written, and returns the SHA-256 of the file, hexadecimal."""
        for _, users in self._pieces:
            for user in users:
                user.result()
        return self._hash.hexdigest()

    def close(self) -> None:
        """Closes the file, whether it is finished or not."""
        for thread in (self._writer, self._summer):
            thread.shutdown(cancel_futures=True)
        self._stream.close()

    def _write(self, data: np.ndarray) -> None:
        view = data.data
        while view:
            view = view[self._stream.write(view) :]
