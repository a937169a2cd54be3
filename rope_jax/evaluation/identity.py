"""Digests of what a measurement depends on, by which one that was kept is told from one of another vector or model."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rope_jax.rope.embedding import ScaleVector

# What is larger than the blocks is read in blocks, spread evenly over a tensor, or over a file of another format.
_BLOCK, _OF_TENSOR, _OF_FILE = 256, 16, 4096


def digest(*parts: Any) -> str:
    """Digest of bytes and JSON-able values: 16 hexadecimal digits."""
    found = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()[:16]


def vector_digest(rope: ScaleVector, base: float) -> str:
    """Digest of the rotary base, the factors and the attention factors."""
    return digest(
        base, np.asarray(rope.attention_factor, float).tolist(), np.asarray(rope.factors, np.float64).tobytes()
    )


def weights_digest(folder: Path) -> str:
    """Digest of a model's files: their names and sizes, `config.json`, and of every tensor some bytes.

    Neither size nor time tells weights apart that were written in place within a second, and a copy has another time.
    Reading every byte takes minutes for a large model. Training moves nearly every weight, so that the headers and at
    most 4 KiB of each tensor tell models apart in well under a second.
    """
    found = (path for kind in ("config.json", "*.safetensors") for path in folder.glob(kind))
    paths = [folder] if folder.is_file() else sorted(found)
    return digest(*(part for path in paths for part in _parts(path)))


def _parts(path: Path) -> Iterator[Any]:
    size = path.stat().st_size
    yield [path.name, size]
    with path.open("rb") as file:
        if path.suffix != ".safetensors":
            yield b"".join(_blocks(file, 0, size, _OF_FILE))
            return
        length = int.from_bytes(file.read(8), "little")  # checked when the model's shapes were read
        header = file.read(length)
        yield header
        for name, tensor in json.loads(header).items():
            if name != "__metadata__":
                start, end = (8 + length + offset for offset in tensor["data_offsets"])
                yield b"".join(_blocks(file, start, end, _OF_TENSOR))


def _blocks(file: BinaryIO, start: int, end: int, most: int) -> Iterator[bytes]:
    step = max((end - start - _BLOCK) // (most - 1), _BLOCK)
    for place in range(start, end, step):
        file.seek(place, os.SEEK_SET)
        yield file.read(min(_BLOCK, end - place))
