"""Reads model folders in Hugging Face's format, or GGUF files, into parameters; writes parameters as such folders."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils

from rope_jax import multihost
from rope_jax.errors import InputError
from rope_jax.interop.arrays import aligned, copy_cast
from rope_jax.interop.atomic import check_space, counter
from rope_jax.interop.export_config import describe_export, source_config
from rope_jax.interop.hf_config import SourceConfig
from rope_jax.interop.model_folder import inspect, listed, widest_dtype
from rope_jax.interop.new_folder import check_folder, files_to_carry, write_folder
from rope_jax.interop.new_tensor_files import SHARD_BYTES, NewTensor, plan_shards, write_sharded
from rope_jax.interop.tensor_files import DTYPES, StoredTensor
from rope_jax.interop.weights import EMBEDDING, Weight, table
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector

# Tensors that are read at a time; more than a few do not make a disk faster.
THREADS = 4


@dataclasses.dataclass(frozen=True)
class HuggingFaceModel(SourceConfig):
    """A model that was read: what its config says, and `params` of `Llama(config)`, plain arrays."""

    params: dict = dataclasses.field(kw_only=True)


def check_model(folder: str | Path) -> SourceConfig:
    """Checks that a folder or a GGUF file can be read, without reading its weights.

    Returns:
        What its config says, `param_dtype` being that of the tensors, the widest if they differ.

    Raises:
        InputError: for everything that `read_model` would refuse, apart from values that a narrower
            `param_dtype` cannot hold.
    """
    source, tensors = inspect(Path(folder))
    return dataclasses.replace(source, config=dataclasses.replace(source.config, param_dtype=widest_dtype(tensors)))


def read_model(
    folder: str | Path,
    shardings=None,
    param_dtype: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> HuggingFaceModel:
    """Reads a model, each parameter straight into its sharding.

    All checks of config, names, shapes, dtypes and file sizes precede the first tensor. The host holds one parameter at
    a time; of several processes, each reads only the pieces of its own devices.

    Args:
        folder: model folder, whose files may be symbolic links, as in the Hub's cache; or GGUF file.
        shardings: a `jax.sharding.Sharding` for all parameters, or a tree of them like `params`; None puts
            everything on the default device.
        param_dtype: dtype to keep the weights in; None keeps the folder's.
        progress: called with the tensor bytes read so far and in all, after each tensor.

    Raises:
        InputError: naming the file and the fix, if the folder is no LLaMA that this package computes exactly,
            or is incomplete or corrupt.
    """
    source, tensors = inspect(Path(folder))
    stored = {DTYPES[tensor.dtype].name: name for name, tensor in reversed(tensors.items())}
    if param_dtype is None and len(stored) > 1:
        examples = ", ".join(f"{name} is {dtype}" for dtype, name in sorted(stored.items()))
        raise InputError(
            f"{folder} mixes dtypes ({examples}): give `param_dtype`, such as '{widest_dtype(tensors)}'",
            field="param_dtype",
        )
    config = dataclasses.replace(source.config, param_dtype=param_dtype or widest_dtype(tensors))
    advance = counter(sum(tensor.bytes for tensor in tensors.values()), progress)
    placed = flatten_dict(shardings) if isinstance(shardings, Mapping) else {}
    with ThreadPoolExecutor(THREADS) as threads:
        reader = _Reader(config, tensors, threads, advance)
        params = {w.path: reader.parameter(w, placed[w.path] if placed else shardings) for w in table(config)}
    known = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    return HuggingFaceModel(**known | {"config": config, "params": unflatten_dict(params)})


def write_model(
    folder: str | Path,
    config: LlamaConfig,
    params,
    rope: ScaleVector,
    *,
    context: int,
    provenance: Mapping,
    source: str | Path | None = None,
    extra_files: Callable[[Path], object] | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Writes a folder that transformers and engines that read its format load as a stock LLaMA.

    The scale vector and its attention factor are in its config, as `describe_rope` writes them. The folder appears
    whole or not at all, and `SHA256SUMS` in it holds the checksums of its files. The host holds one tensor of one layer
    at a time. All processes of a run call this, and the first writes.

    Args:
        folder: folder to create.
        config: model shape.
        params: parameters of `Llama(config)`, plain arrays; may be sharded.
        rope: scale vector, factors `[D/2]` (or rows per layer that are all equal).
        context: extended context, tokens.
        provenance: what the scale vector was made from (method, original and target context, ...); JSON-serialisable.
        source: model folder or GGUF file whose tokenizer, `generation_config.json` and config keys that change no
            logit are copied.
        extra_files: writes further files, such as a tokenizer's or a model card, into the folder it is given.
        dtype: dtype of the tensors; None keeps that of each parameter.
        overwrite: replace a model folder that exists.
        max_shard_bytes: tensor bytes per file.
        progress: called with the tensor bytes written so far and in all, after each tensor.

    Raises:
        InputError: naming the argument, folder or file and the fix, in every process. Nothing remains then.
    """
    folder = Path(os.path.abspath(folder))
    source = None if source is None else Path(source)
    multihost.together(lambda: check_folder(folder, source, overwrite) if multihost.is_first() else None)
    if dtype is not None:
        _check_dtype(dtype, "dtype")
    leaves: dict[tuple[str, ...], Any] = dict(flatten_dict(params))
    _check_params(leaves, config)
    described = describe_export(
        config,
        rope,
        context=context,
        dtype=dtype or leaves[EMBEDDING.path].dtype.name,
        provenance=provenance,
        source=None if source is None else source_config(source, config),
    )
    planned = _plan(config, leaves, dtype)
    shards = plan_shards((tensor for tensor, _, _ in planned), max_shard_bytes)
    total = sum(tensor.bytes for tensor, _, _ in planned)
    need = total + sum(file.stat().st_size for file in (files_to_carry(source) if source else ()))
    multihost.together(lambda: check_space(folder, need) if multihost.is_first() else None)

    values = (weight.to_stored(_to_host(leaves[weight.path], layer), config) for _, weight, layer in planned)

    def write() -> None:
        # Every tensor is gathered from all processes by all processes.
        if not multihost.is_first():
            for _ in values:
                pass
            return
        coming = _one_ahead(values)
        advance = counter(total, progress)
        try:
            write_folder(
                folder, described, lambda place: write_sharded(place, shards, coming, advance), source, extra_files
            )
        except Exception:
            if jax.process_count() > 1:
                for _ in coming:  # the others wait for them, and then learn of the failure
                    pass
            raise

    multihost.together(write)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads parameters of one model."""

    config: LlamaConfig
    tensors: Mapping[str, StoredTensor]
    threads: ThreadPoolExecutor
    advance: Callable[[int], None]

    def parameter(self, weight: Weight, sharding) -> jax.Array:
        shape, names = weight.kept_shape(self.config), weight.names(self.config)
        dtype = np.dtype(jnp.dtype(self.config.param_dtype))
        left = sum(self.tensors[name].bytes for name in names)

        @functools.cache  # devices that hold copies of one another share one piece
        def read(bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
            nonlocal left
            piece = aligned(tuple(stop - start for start, stop in bounds), dtype)
            index = tuple(slice(*bound) for bound in bounds)
            if weight.stacked:
                jobs = [(row, name, index[1:]) for row, name in zip(piece, names[index[0]])]
            else:
                jobs = [(piece, names[0], index)]
            for count in self.threads.map(lambda job: self._fill(weight, *job), jobs):
                self.advance(count)
                left -= count
            return piece

        if sharding is None:
            array = jax.device_put(read(tuple((0, size) for size in shape)))
        else:
            array = jax.make_array_from_callback(
                shape, sharding, lambda index: read(tuple(s.indices(size)[:2] for s, size in zip(index or (), shape)))
            )
        self.advance(left)  # what other processes read
        return array

    def _fill(self, weight: Weight, target: np.ndarray, name: str, index: tuple[slice, ...]) -> int:
        """Reads one tensor's part of a piece, and returns the bytes of that part."""
        axes, tensor = weight.axes(), self.tensors[name]
        kept = weight.kept_shape(self.config)[weight.stacked :]
        rows, *others = (index[axis] for axis in axes)
        for place, values in tensor.blocks(tuple(kept[axis] for axis in axes), rows):
            copy_cast(target.transpose(axes)[place], values[(slice(None), *others)], name)
        return target.size * DTYPES[tensor.dtype].itemsize


def _check_dtype(dtype: str, field: str, what: str = "") -> None:
    names = [known.name for known in DTYPES.values()]
    if dtype not in names:
        raise InputError(f"`{field}` {what}is {dtype!r}: use one of {', '.join(names)}")


def _check_params(params, config):
    rows = {weight.path: weight for weight in table(config)}
    missing = ["/".join(path) for path in rows if path not in params]
    unexpected = ["/".join(path) for path in params if path not in rows]
    if missing or unexpected:
        parts = [f"{word} {listed(names)}" for word, names in (("lacks", missing), ("holds", unexpected)) if names]
        raise InputError(f"`params` {' and '.join(parts)}: give the parameters of a model of this config")
    for path, leaf in params.items():
        shape = rows[path].kept_shape(config)
        if leaf.shape != shape:
            raise InputError(
                f"`params` {'/'.join(path)} has shape {list(leaf.shape)} where config asks for {list(shape)}: "
                "give the parameters of a model of this config"
            )
        _check_dtype(leaf.dtype.name, "params", f"{'/'.join(path)} ")


def _plan(config, params, dtype) -> list[tuple[NewTensor, Weight, int | None]]:
    planned = []
    for weight in table(config):
        kept = np.dtype(jnp.dtype(dtype or params[weight.path].dtype))
        for layer, name in enumerate(weight.names(config)):
            tensor = NewTensor(name, kept, weight.stored_shape(config))
            planned.append((tensor, weight, layer if weight.stacked else None))
    # Files go layer by layer, and wide dtypes come first, so that every tensor is aligned to its own width.
    planned.sort(key=lambda item: (-item[0].dtype.itemsize, -1 if item[2] is None else item[2]))
    return planned


def _to_host(array, layer: int | None) -> np.ndarray:
    """A parameter, or one layer of it; on one CPU device a view."""
    devices = array.devices() if isinstance(array, jax.Array) else set()
    if len(devices) == 1 and next(iter(devices)).platform == "cpu":
        array = np.asarray(array)
    if layer is not None:
        array = array[layer]
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def _one_ahead(values: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Prepares the next tensor while the last one is written."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, values, None)
        while (value := coming.result()) is not None:
            coming = thread.submit(next, values, None)
            yield value
