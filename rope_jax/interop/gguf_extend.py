"""A scale vector put into a GGUF file that exists, quantised or not."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from rope_jax.errors import InputError
from rope_jax.interop.atomic import check_space, check_target, write_atomically
from rope_jax.interop.gguf_files import (
    FACTORS,
    READS_FACTORS,
    SCALING_KEYS,
    import_gguf,
    open_gguf,
    read_gguf_rope,
    stored_factors,
    write_content,
)
from rope_jax.rope.embedding import ScaleVector


def check_extendable(existing: str | Path, rope: ScaleVector, base: float) -> None:
    """Checks that a GGUF file can take a scale vector.

    Args:
        existing: GGUF file.
        rope: scale vector.
        base: rotary base of the model that the vector was made for.

    Raises:
        InputError: naming the file and the fix.
    """
    existing = Path(existing)
    found = read_gguf_rope(existing)
    if found.splits > 1:
        raise InputError(f"{existing} is one of several files: join them first (`llama-gguf-split --merge`)")
    if found.architecture not in READS_FACTORS:
        raise InputError(
            f"{existing} is a {found.architecture} model, for which llama.cpp reads no scale vector: only "
            f"{', '.join(READS_FACTORS)} can be extended"
        )
    # GGUF keeps the base as float32.
    if np.float32(found.base) != np.float32(base):
        raise InputError(f"{existing} has rotary base {found.base:g} where the model has {base:g}: they are two models")
    if np.asarray(rope.factors).shape != (found.dimensions // 2,):
        raise InputError(
            f"{existing} rotates {found.dimensions} dimensions, but the factors have shape "
            f"{list(np.shape(rope.factors))}: they are of two models, or differ from layer to layer"
        )


def add_factors(
    target: str | Path,
    existing: str | Path,
    rope: ScaleVector,
    *,
    base: float,
    context: int,
    provenance: Mapping,
    overwrite: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Copies a GGUF file and adds a scale vector; other tensors, quantised or not, stay equal to the byte.

    An attention factor goes into the key by which llama.cpp multiplies cos and sin, since quantised weights cannot
    take it up.

    Args:
        target: file to create; it appears whole or not at all.
        existing: GGUF file of the same model.
        rope: scale vector relative to the frequencies of the base, factors ``[D/2]``.
        base: rotary base of the model that the vector was made for.
        context: extended context, tokens.
        provenance: what the scale vector was made from; JSON-serialisable.
        overwrite: replace a file that exists.
        progress: called with the tensor bytes written so far and in all.

    Raises:
        InputError: naming the file and the fix, if it cannot be read, is of another model, or is one of several
            files. Nothing remains then.
    """
    gguf = import_gguf()
    target, existing = Path(os.path.abspath(target)), Path(existing)
    check_extendable(existing, rope, base)
    check_target(target, overwrite)
    reader = open_gguf(existing)
    architecture = reader.get_field("general.architecture").contents()
    factors, attention_factor = stored_factors(rope), float(rope.attention_factor)
    kept = [tensor for tensor in reader.tensors if tensor.name != FACTORS]
    tensors = [(t.name, t.data.shape, t.data.dtype, t.data.nbytes, t.tensor_type) for t in kept]
    left_out = {"general.architecture", *(f"{architecture}.{key}" for key in SCALING_KEYS)}
    length = f"{architecture}.context_length"

    def write(place: Path) -> None:
        writer = gguf.GGUFWriter(place, architecture, endianess=reader.endianess)
        for key, field in reader.fields.items():
            if key in left_out or key.startswith(("GGUF.", "rope_jax.")):
                continue
            if key == length:
                writer.add_context_length(context)
                continue
            kind = field.types[0]
            element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            value = field.contents()
            if element is not None and not value:
                continue  # an empty array has no element type to write
            writer.add_key_value(key, value, kind, sub_type=element)
            if key == "general.alignment":
                writer.data_alignment = int(value)
        if attention_factor != 1:
            writer.add_rope_scaling_attn_factors(attention_factor)
        values = (tensor.data for tensor in kept)
        write_content(writer, provenance, factors, tensors, values, endianess=reader.endianess, progress=progress)

    check_space(target, existing.stat().st_size)
    write_atomically(target, write)
