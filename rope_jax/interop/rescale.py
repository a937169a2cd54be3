"""A model folder with another scale vector: no training, and no weights in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from rope_jax.interop.arrays import cast
from rope_jax.interop.atomic import check_space, counter
from rope_jax.interop.export_config import describe_export
from rope_jax.interop.model_folder import inspect
from rope_jax.interop.new_folder import check_folder, files_to_carry, write_folder
from rope_jax.interop.new_tensor_files import copy_tensors, write_index
from rope_jax.interop.tensor_files import DTYPES, SINGLE, find_tensors
from rope_jax.interop.weights import EMBEDDING, fold_attention_factor, folding_rows
from rope_jax.rope.embedding import ScaleVector


def rescale_folder(
    source: str | Path,
    target: str | Path,
    rope: ScaleVector,
    *,
    context: int,
    provenance: Mapping,
    extra_files: Callable[[Path], object] | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Writes a copy of a model under another scale vector: a zero-shot extension of its context.

    Files are copied byte for byte, whatever their dtype; only an attention factor other than 1 changes tensors, those
    of `folding_rows`. Everything is checked first, and the folder appears whole or not at all. Call it in one process.

    Args:
        source: model folder.
        target: folder to create.
        rope: the whole scale vector, factors ``[D/2]``, which replaces that of the source's config.
        context, provenance, extra_files, overwrite, progress: as of `write_model`.

    Raises:
        InputError: naming the argument, folder or file and the fix. Nothing remains then.
    """
    source, target = Path(source), Path(os.path.abspath(target))
    check_folder(target, source, overwrite)
    known, tensors = inspect(source)
    described, attention_factor = describe_export(
        known.config,
        rope,
        context=context,
        dtype=DTYPES[tensors[EMBEDDING.name].dtype].name,
        provenance=provenance,
        carried=known.carried,
    )
    # The files hold buffers of old checkpoints too, which no row of the table asks for.
    stored = find_tensors(source)
    files = sorted({tensor.file for tensor in stored.values()})
    carried = files_to_carry(source)
    total = sum(tensor.bytes for tensor in stored.values())
    check_space(target, total + sum(file.stat().st_size for file in carried))

    def fold(name: str) -> Callable[[np.ndarray], np.ndarray]:
        return lambda numbers: cast(fold_attention_factor(numbers, attention_factor), numbers.dtype, name)

    rows = folding_rows(known.config) if attention_factor != 1 else ()
    changed = {name: fold(name) for row in rows for name in row.names(known.config)}

    def write_tensors(place: Path) -> dict[str, str]:
        advance = counter(total, progress)
        digests = {file.name: copy_tensors(file, place / file.name, changed, advance) for file in files}
        if files[0].name != SINGLE:
            write_index(place, {name: tensor.file.name for name, tensor in stored.items()}, total)
        return digests

    write_folder(target, described, write_tensors, carried, extra_files)
