"""An untrusted model, a folder or a GGUF file: config and weights checked against each other."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rope_jax.errors import InputError
from rope_jax.gguf_reader import is_gguf
from rope_jax.interop.gguf_model import read_gguf_model
from rope_jax.interop.hf_config import SourceConfig, read_config
from rope_jax.interop.tensor_files import DTYPES, StoredTensor, find_tensors
from rope_jax.interop.weights import EMBEDDING, FREQUENCY_BUFFER, HEAD, table


def read_source(path: Path) -> SourceConfig:
    """What a model folder's `config.json`, or a GGUF file, says."""
    return read_gguf_model(path)[0] if is_gguf(path) else read_config(path)


def inspect(path: Path) -> tuple[SourceConfig, dict[str, StoredTensor]]:
    """Checks, without reading weights, that config and weights are those of one model that this package computes.

    Gives what its config says, and the tensors of that model by Hugging Face's names, in the order of the files.
    """
    unknown: list[str] = []
    if is_gguf(path):
        source, found, unknown = read_gguf_model(path)
    else:
        if not os.path.isdir(path):
            raise InputError(f"{path} is not a folder: give the folder that holds config.json and the weights")
        if not os.path.isfile(path / "config.json"):
            raise InputError(f"{path} holds no config.json: give a model folder in Hugging Face format")
        source, found = read_config(path), find_tensors(path)
    config = source.config
    says = "its metadata" if is_gguf(path) else "config.json"

    expected = {name: weight for weight in table(config) for name in weight.names(config)}
    duplicate_head = found.get(HEAD.name) if config.tie_embeddings else None
    missing = [name for name in expected if name not in found]
    unexpected = unknown + [
        name
        for name in found
        if name not in expected and not FREQUENCY_BUFFER.fullmatch(name) and found[name] is not duplicate_head
    ]
    if missing:
        hint = "; set tie_word_embeddings to true if this model has no head" if missing == [HEAD.name] else ""
        raise InputError(
            f"{path} lacks {listed(missing)}: {says} and weights are of different models, or the download"
            f" is incomplete{hint}"
        )
    if unexpected:
        raise InputError(
            f"{path} holds {listed(unexpected)}, which a model of {says} does not have: {says} "
            "and weights are of different models, or of another architecture"
        )
    for name, weight in expected.items():
        _check_header(found[name], weight.stored_shape(config), says)
    if duplicate_head is not None:
        _check_header(duplicate_head, HEAD.stored_shape(config), says)
        _check_duplicate_head(found[EMBEDDING.name], duplicate_head)
    return source, {name: tensor for name, tensor in found.items() if name in expected}


def widest_dtype(tensors: Mapping[str, StoredTensor]) -> str:
    """The dtype that holds every value of a model: the tensors' own, or float32 if they differ."""
    found = {DTYPES[tensor.dtype].name for tensor in tensors.values()}
    # Of two half precisions, neither holds the values of the other.
    return found.pop() if len(found) == 1 else "float32"


def _check_header(tensor, shape, says):
    if tensor.shape != shape:
        raise InputError(
            f"{tensor.file}: {tensor.name} has shape {list(tensor.shape)} where {says} asks for "
            f"{list(shape)}: {says} and weights are of different models"
        )
    if tensor.dtype not in DTYPES:
        raise InputError(
            f"{tensor.file}: {tensor.name} is {tensor.dtype} where one of {', '.join(DTYPES)} is expected: "
            "use the unquantised weights"
        )


def _check_duplicate_head(embedding, head):
    same = embedding.dtype == head.dtype and np.array_equal(
        embedding.read().view(np.uint16), head.read().view(np.uint16)
    )
    if not same:
        raise InputError(
            f"{head.file}: {HEAD.name} differs from {EMBEDDING.name}, yet config.json sets "
            "tie_word_embeddings: set it to false to use the head, or remove the head"
        )


def listed(names: list[str]) -> str:
    """The first few of many names, for a message."""
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
