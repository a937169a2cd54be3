"""LLaMA weights in from Hugging Face's format, and out again for engines that know only that."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from rope_jax.errors import InputError
from rope_jax.interop.hf_config import SourceConfig, check_carried, config_json, read_config
from rope_jax.interop.hub import TOKENIZER_FILES
from rope_jax.interop.tensor_files import (
    DTYPES,
    NewTensor,
    StoredTensor,
    find_tensors,
    plan_shards,
    write_sharded,
)
from rope_jax.interop.weights import EMBEDDING, HEAD, KEY, QUERY, Weight, is_frequency_buffer, table
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector

# What config.json, an index and file headers may take beside the tensors.
_MARGIN_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class HuggingFaceModel:
    """A model read from a folder.

    Attributes:
        config: its shape; `param_dtype` is the dtype of `params`. How to compute (`dtype`, `remat`, ...) is
            not in the folder and has its default.
        params: parameters of `Llama(config)`, plain arrays.
        rope: the model's own scaling, factors `[D/2]`.
        source_dtype: dtype of the tensors in the folder, the widest if they differ; what an export of this
            model would use.
        provenance: what our own export noted about its scale vector, or None.
    """

    config: LlamaConfig
    params: dict
    rope: ScaleVector
    source_dtype: str
    provenance: dict | None


def check_model(folder: str | Path) -> SourceConfig:
    """Checks that a folder can be read, without reading its weights.

    Args:
        folder: model folder (see `resolve_model`).

    Returns:
        What its `config.json` says, `param_dtype` being that of the tensors, the widest if they differ.

    Raises:
        InputError: for everything that `read_model` would refuse, apart from values that a narrower
            `param_dtype` cannot hold.
    """
    source, tensors = _inspect(Path(folder))
    return dataclasses.replace(source, config=dataclasses.replace(source.config, param_dtype=_widest(tensors)))


def read_model(folder: str | Path, shardings=None, param_dtype: str | None = None) -> HuggingFaceModel:
    """Reads a model, each parameter straight to where it belongs.

    Every check of config, names, shapes, dtypes and file sizes comes before the first tensor is read. Then
    each device's piece of one stacked parameter at a time is copied out of the mapped files, so that the host
    never holds more than one parameter, and in a run of several processes only that process's pieces of it.

    Args:
        folder: model folder (see `resolve_model`); files may be symbolic links, as in the Hub's cache.
        shardings: a `jax.sharding.Sharding` for all parameters, or a tree of them like `params`; None puts
            everything on the default device. `check_model(folder).config` gives the shapes to make one for.
        param_dtype: dtype to keep the weights in; None keeps the folder's.

    Returns:
        The model.

    Raises:
        InputError: naming the file and the fix, if the folder is no LLaMA that this package computes exactly,
            or is incomplete or corrupt.
    """
    source, tensors = _inspect(Path(folder))
    if param_dtype is not None:
        _check_dtype("param_dtype", param_dtype)
    found = {name: DTYPES[tensor.dtype].name for name, tensor in tensors.items()}
    source_dtype = _widest(tensors)
    if param_dtype is None and len(set(found.values())) > 1:
        examples = ", ".join(
            f"{next(name for name in found if found[name] == dtype)} is {dtype}"
            for dtype in sorted(set(found.values()))
        )
        raise InputError(f"{folder} mixes dtypes ({examples}): give param_dtype, such as '{source_dtype}'")

    config = dataclasses.replace(source.config, param_dtype=param_dtype or source_dtype)
    params: dict = {}
    for weight in table(config):
        node = params
        for key in weight.path[:-1]:
            node = node.setdefault(key, {})
        sharding = _leaf(shardings, weight.path) if isinstance(shardings, Mapping) else shardings
        node[weight.path[-1]] = _read_parameter(weight, tensors, config, sharding)
    return HuggingFaceModel(config, params, source.rope, source_dtype, source.provenance)


def fold_attention_factor(tensor: np.ndarray, attention_factor: float) -> np.ndarray:
    """Moves the factor on cos and sin into a query or key projection, where every engine honours it.

    Rotation is linear, so `(a cos, a sin)` applied to `W x` is `(cos, sin)` applied to `(a W) x`. Multiplying
    both the query and the key projection by `a` gives the same logits up to rounding with an attention factor
    of 1. Engines disagree about the config's own `attention_factor`: transformers honours it, others derive
    theirs and ignore it.

    Args:
        tensor: weights of `q_proj` or `k_proj`, any float dtype and layout.
        attention_factor: a.

    Returns:
        The weights times a, float32, so that the only further rounding is that to the dtype of the file; the
        tensor itself, untouched, if a is 1.
    """
    if attention_factor == 1:
        return tensor
    return tensor.astype(np.float32) * np.float32(attention_factor)


def write_model(
    folder: str | Path,
    config: LlamaConfig,
    params,
    rope: ScaleVector,
    *,
    context: int,
    provenance: Mapping,
    source: str | Path | None = None,
    save_tokenizer: Callable[[Path], object] | None = None,
    extra_config: Mapping | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a folder that transformers and engines that read its format load as a stock LLaMA.

    The scale vector becomes a `longrope` block (see `config_json`), or nothing if it is all ones; an
    attention factor is folded into the weights (see `fold_attention_factor`). The folder appears whole or not
    at all: it is written under another name beside `folder` and then renamed. The host holds one tensor of
    one layer at a time. In a run of several processes all must call this, and the first writes.

    Args:
        folder: folder to create; its parent is created too.
        config: model shape.
        params: parameters of `Llama(config)`, plain arrays; may be sharded.
        rope: scale vector, factors `[D/2]` (or rows per layer that are all equal).
        context: tokens that the model is now good for, written as `max_position_embeddings`.
        provenance: what the scale vector was made from (method, original and target context, ...), kept under
            an own key of `config.json`; JSON-serialisable.
        source: model folder to carry tokenizer files, `generation_config.json` and config keys that change no
            logit from.
        save_tokenizer: writes tokenizer files into the folder it is given, in place of those of `source`.
        extra_config: further config keys that change no logit, such as `eos_token_id`; they win over
            `source`.
        dtype: dtype of the tensors; None keeps that of each parameter.
        overwrite: replace a model folder that is already there.
        max_shard_bytes: tensor bytes per file.

    Raises:
        InputError: naming the argument, folder or file and the fix. Nothing is left behind.
    """
    folder = Path(os.path.abspath(folder))
    source = None if source is None else Path(source)
    _check_target(folder, source, overwrite)
    factors, attention_factor = _one_vector(rope, config)
    _check_context(context, config)
    if dtype is not None:
        _check_dtype("dtype", dtype)
    _check_params(params, config)
    provenance = dict(provenance)
    if attention_factor != 1:
        provenance["folded_attention_factor"] = attention_factor
    _check_json(provenance)
    carried = {} if source is None else _carried(source, config)
    check_carried(extra_config or {})
    carried |= extra_config or {}

    planned = _plan(config, params, dtype)
    shards = plan_shards((tensor for tensor, _, _ in planned), max_shard_bytes)
    copied = [] if source is None else _files_to_copy(source, with_tokenizer=save_tokenizer is None)
    need = sum(tensor.bytes for tensor, _, _ in planned) + sum(file.stat().st_size for file in copied)
    _check_space(folder, need + _MARGIN_BYTES)

    values = _stored_values(planned, config, params, attention_factor)
    if jax.process_index() != 0:
        for _ in values:  # takes part in gathering what the first process writes
            pass
        multihost_utils.sync_global_devices("write_model")
        return
    described = config_json(
        config,
        factors,
        context=context,
        dtype=dtype or _leaf(params, EMBEDDING.path).dtype.name,
        carried=carried,
        provenance=provenance,
    )
    _write_atomically(
        folder, lambda place: _write_folder(place, described, shards, values, copied, save_tokenizer, context)
    )
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("write_model")


# Reading


def _inspect(folder: Path) -> tuple[SourceConfig, dict[str, StoredTensor]]:
    """Config and weights of a folder, checked against each other; returns only the tensors of the table."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the folder that holds config.json and the weights")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no config.json: give a model folder in Hugging Face format")
    source = read_config(folder)
    config = source.config
    found = find_tensors(folder)

    expected = {name: weight for weight in table(config) for name in weight.names(config)}
    duplicate_head = found.get(HEAD.name) if config.tie_embeddings else None
    missing = [name for name in expected if name not in found]
    unexpected = [
        name
        for name in found
        if name not in expected and not is_frequency_buffer(name) and found[name] is not duplicate_head
    ]
    if missing:
        hint = "; set tie_word_embeddings to true if this model has no head" if missing == [HEAD.name] else ""
        raise InputError(
            f"{folder} lacks {_listed(missing)}: config.json and weights do not belong together, or the download"
            f" is incomplete{hint}"
        )
    if unexpected:
        raise InputError(
            f"{folder} holds {_listed(unexpected)}, which a LLaMA of its config.json has not: config.json "
            "and weights do not belong together, or the model is of another architecture"
        )
    for name, weight in expected.items():
        _check_header(found[name], weight.stored_shape(config))
    if duplicate_head is not None:
        _check_header(duplicate_head, HEAD.stored_shape(config))
        _check_duplicate_head(found[EMBEDDING.name], duplicate_head)
    return source, {name: found[name] for name in expected}


def _widest(tensors: dict[str, StoredTensor]) -> str:
    found = {DTYPES[tensor.dtype].name for tensor in tensors.values()}
    # Of two half precisions, neither holds the values of the other.
    return found.pop() if len(found) == 1 else "float32"


def _check_header(tensor, shape):
    if tensor.shape != shape:
        raise InputError(
            f"{tensor.file}: {tensor.name} has shape {list(tensor.shape)} where config.json asks for "
            f"{list(shape)}: config.json and weights do not belong together"
        )
    if tensor.dtype not in DTYPES:
        raise InputError(
            f"{tensor.file}: {tensor.name} is {tensor.dtype} where one of {', '.join(DTYPES)} is expected: "
            "use the unquantised weights"
        )


def _check_duplicate_head(embedding, head):
    same = embedding.dtype == head.dtype and np.array_equal(
        embedding.view().view(np.uint16), head.view().view(np.uint16)
    )
    if not same:
        raise InputError(
            f"{head.file}: {HEAD.name} differs from {EMBEDDING.name}, yet config.json sets "
            "tie_word_embeddings: set "
            "it to false to use the head, or remove the head"
        )


def _read_parameter(weight: Weight, tensors, config: LlamaConfig, sharding) -> jax.Array:
    dtype = np.dtype(jnp.dtype(config.param_dtype))
    shape = weight.kept_shape(config)
    names = weight.names(config)

    def layer(name, index):
        return _cast(weight.to_kept(tensors[name].view(), config)[index], dtype, name)

    def read(index):
        if not weight.stacked:
            return np.array(layer(names[0], index), order="C")
        chosen = names[index[0]]
        inner = tuple(len(range(*s.indices(size))) for s, size in zip(index[1:], shape[1:]))
        piece = np.empty((len(chosen), *inner), dtype)
        for row, name in enumerate(chosen):
            piece[row] = layer(name, index[1:])
        return piece

    whole = tuple(slice(None) for _ in shape)
    if sharding is None:
        return jnp.asarray(read(whole))
    # Devices that hold copies of one another share one piece. Slices cannot be keys before Python 3.12.
    pieces: dict = {}

    def shared(index):
        key = tuple(s.indices(size) for s, size in zip(index, shape))
        if key not in pieces:
            pieces[key] = read(index)
        return pieces[key]

    return jax.make_array_from_callback(shape, sharding, shared, dtype=dtype)


def _cast(values: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(dtype)
    if dtype != np.float32 and np.isfinite(values).all() and not np.isfinite(cast).all():
        raise InputError(f"{name} has values beyond the range of {dtype.name}: use bfloat16 or float32")
    return cast


# Writing


def _check_target(folder: Path, source: Path | None, overwrite: bool):
    if source is not None:
        if not source.is_dir():
            raise InputError(f"source {source} is not a folder: give the model folder to carry files from")
        inside, outside = source.resolve(), folder.resolve()
        if inside == outside or outside in inside.parents:
            raise InputError(f"{folder} holds the source model {source}: write to another folder")
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise InputError(f"{folder} already exists: give another folder, or ask to overwrite it")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a model folder (no config.json), so it is not replaced: remove it first")


def _one_vector(rope: ScaleVector, config: LlamaConfig) -> tuple[np.ndarray, float]:
    factors = np.asarray(rope.factors, np.float32)
    attention_factor = float(rope.attention_factor)
    pairs = config.head_dim // 2
    if factors.shape == (config.num_layers, pairs) and (factors == factors[:1]).all():
        factors = factors[0]
    if factors.shape == (config.num_layers, pairs):
        raise InputError(
            "rope.factors differ from layer to layer, which no stock config.json can say: export one vector "
            "for the whole model"
        )
    if factors.shape != (pairs,):
        raise InputError(f"rope.factors has shape {list(factors.shape)}: this model needs [{pairs}]")
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise InputError("rope.factors holds an entry that is not a positive finite number: JSON cannot say it")
    if not (np.isfinite(attention_factor) and attention_factor > 0):
        raise InputError(f"rope.attention_factor is {attention_factor}: it must be a finite number above 0")
    return factors, attention_factor


def _check_context(context, config):
    if isinstance(context, bool) or not isinstance(context, int) or context < 1:
        raise InputError(f"context is {context}: give the tokens that the model is good for, a positive integer")
    if config.hidden_size % config.num_heads:
        raise InputError(
            f"model.hidden_size is {config.hidden_size} and model.num_heads {config.num_heads}: transformers "
            "loads only sizes that divide, even where head_dim is given"
        )


def _check_dtype(name, dtype):
    names = [known.name for known in DTYPES.values()]
    if dtype not in names:
        raise InputError(f"{name} is {dtype!r}: use one of {', '.join(names)}")


def _check_params(params, config):
    rows = {weight.path: weight for weight in table(config)}
    found = {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    missing = ["/".join(path) for path in rows if path not in found]
    unexpected = ["/".join(path) for path in found if path not in rows]
    if missing or unexpected:
        parts = [f"{word} {_listed(names)}" for word, names in (("lacks", missing), ("holds", unexpected)) if names]
        raise InputError(f"params {' and '.join(parts)}: give the parameters of a model of this config")
    for path, leaf in found.items():
        shape = rows[path].kept_shape(config)
        if leaf.shape != shape:
            raise InputError(
                f"params {'/'.join(path)} has shape {list(leaf.shape)} where config asks for {list(shape)}: "
                "give the parameters of a model of this config"
            )
        _check_dtype(f"params {'/'.join(path)} dtype", leaf.dtype.name)


def _check_json(provenance):
    try:
        json.dumps(provenance, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"provenance cannot be written as JSON ({error}): give strings and numbers") from None


def _carried(source: Path, config: LlamaConfig) -> dict:
    if not (source / "config.json").exists():
        return {}
    known = read_config(source)
    if known.config.vocab_size != config.vocab_size:
        raise InputError(
            f"source {source} has vocab_size {known.config.vocab_size} and the model {config.vocab_size}: "
            "give the folder that the model was made from"
        )
    return known.carried


def _files_to_copy(source: Path, with_tokenizer: bool) -> list[Path]:
    names = ("generation_config.json", *(TOKENIZER_FILES if with_tokenizer else ()))
    return [source / name for name in names if (source / name).is_file()]


def _check_space(folder: Path, need: int):
    place = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < need:
        raise InputError(
            f"{folder} needs {need / 1e9:.3f} GB and {place} has {free / 1e9:.3f} GB free: free some, or "
            "write elsewhere"
        )


def _plan(config, params, dtype) -> list[tuple[NewTensor, Weight, int | None]]:
    planned = []
    for weight in table(config):
        kept = np.dtype(jnp.dtype(dtype or _leaf(params, weight.path).dtype))
        for layer, name in enumerate(weight.names(config)):
            tensor = NewTensor(name, kept, weight.stored_shape(config))
            planned.append((tensor, weight, layer if weight.stacked else None))
    # Files go layer by layer, and wide dtypes come first, so that every tensor is aligned to its own width.
    planned.sort(key=lambda item: (-item[0].dtype.itemsize, -1 if item[2] is None else item[2]))
    return planned


def _stored_values(planned, config, params, attention_factor) -> Iterator[np.ndarray]:
    for tensor, weight, layer in planned:
        parameter = _leaf(params, weight.path)
        value = weight.to_stored(_to_host(parameter if layer is None else parameter[layer]), config)
        if weight in (QUERY, KEY):
            value = fold_attention_factor(value, attention_factor)
        yield _cast(value, tensor.dtype, tensor.name)


def _to_host(array) -> np.ndarray:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def _write_folder(place, described, shards, values, copied, save_tokenizer, context):
    write_sharded(place, shards, values)
    for file in copied:
        shutil.copyfile(file, place / file.name)
    if save_tokenizer is not None:
        save_tokenizer(place)
    _allow_length(place / "tokenizer_config.json", context)
    # Last: a folder without it is not taken for a model.
    (place / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def _allow_length(file: Path, context: int):
    """Raises the tokenizer's own limit to the new context: some engines take the lower of the two."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    limit = settings.get("model_max_length") if isinstance(settings, dict) else None
    if isinstance(limit, int | float) and limit < context:
        settings["model_max_length"] = context
        file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_atomically(folder: Path, write: Callable[[Path], None]):
    mark = uuid.uuid4().hex[:8]
    place, old = (folder.with_name(f".{folder.name}.{mark}.{end}") for end in ("new", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # What a killed export left behind is as large as the model.
        for unfinished in folder.parent.glob(f".{folder.name}.????????.new"):
            shutil.rmtree(unfinished, ignore_errors=True)
        place.mkdir()
        write(place)
        if os.path.lexists(folder):
            folder.rename(old)
        place.rename(folder)
    except BaseException as error:
        shutil.rmtree(place, ignore_errors=True)
        if os.path.lexists(old) and not os.path.lexists(folder):
            old.rename(folder)
        if isinstance(error, OSError):
            raise InputError(f"{folder} cannot be written ({error}): check the place and its free space") from error
        raise
    if old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old, ignore_errors=True)


# Both


def _leaf(params, path):
    for key in path:
        params = params[key]
    return params


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
