"""Greedy decoding with a key-value cache.

Shapes: B rows, T padded prompt length, N new tokens, S = T + N cache slots, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rope_jax.errors import InputError
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import Llama, head_kernel
from rope_jax.rope.embedding import ScaleVector


def greedy(
    params,
    config: LlamaConfig,
    rope: ScaleVector,
    prompts: Sequence[np.ndarray],
    max_new_tokens: int,
    *,
    eos_id: int | None = None,
    batch_size: int | None = None,
    batch_sharding: NamedSharding | None = None,
) -> list[np.ndarray]:
    """The most likely continuation of each prompt, one token at a time.

    Prompts are padded to a length from `bucket_length` and batches to `batch_size` rows, so prompts of many
    lengths share few compilations; params and scale vector are arguments of the compiled function. Every row
    keeps its own positions 0, 1, 2, ..., so what else is in its batch changes a row by rounding at most.

    Args:
        params: parameters of `Llama`, without boxes, sharded or not.
        config: its config. The cache is in the computation dtype.
        rope: scale vector.
        prompts: int `[length]` each, at least one token; BOS included where the model expects it.
        max_new_tokens: N, at least 1.
        eos_id: token that ends a row; a batch stops when all its rows have ended. None never stops early.
        batch_size: prompts decoded together, of neighbouring lengths; default all of them.
        batch_sharding: sharding of the leading axis of `[B, T]`, for instance
            `NamedSharding(mesh, PartitionSpec(("data", "fsdp")))`; default one device or XLA's choice.

    Returns:
        int32 `[<= N]` new tokens of each prompt, in the order of `prompts`, without the final `eos_id`.

    Raises:
        InputError: if a prompt is empty, or `max_new_tokens` or `batch_size` is below 1.
    """
    if max_new_tokens < 1:
        raise InputError(f"generate.max_new_tokens is {max_new_tokens}: it must be at least 1")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"generate.batch_size is {batch_size}: it must be at least 1")
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    if np.any(lengths == 0):
        raise InputError(f"prompt {int(np.argmin(lengths))} is empty: decoding needs a token to start from")
    if not len(prompts):
        return []

    batch_size = batch_size or len(prompts)
    by_length = np.argsort(lengths, kind="stable")
    answers: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
    for first in range(0, len(prompts), batch_size):
        rows = by_length[first : first + batch_size]
        tokens = np.zeros((batch_size, bucket_length(int(lengths[rows].max()))), np.int32)
        row_lengths = np.zeros(batch_size, np.int32)
        for i, row in enumerate(rows):
            tokens[i, : lengths[row]] = prompts[row]
            row_lengths[i] = lengths[row]
        if batch_sharding is not None:
            tokens, row_lengths = jax.device_put((tokens, row_lengths), batch_sharding)
        new = _decode(
            params,
            rope,
            tokens,
            row_lengths,
            -1 if eos_id is None else eos_id,
            config=config,
            max_new_tokens=max_new_tokens,
            batch_sharding=batch_sharding,
        )
        for row, continuation in zip(rows, np.asarray(new)):
            ends = np.flatnonzero(continuation == eos_id) if eos_id is not None else ()
            answers[row] = continuation[: ends[0]] if len(ends) else continuation
    return answers


def bucket_length(length: int) -> int:
    """The padded length for a prompt: eight lengths per octave, from 16 up, so at most an eighth is padding.

    Args:
        length: prompt length, at least 1.

    Returns:
        The smallest bucket that holds it.
    """
    step = max(16, 2 ** (length.bit_length() - 4))
    return -(-length // step) * step


@partial(jax.jit, static_argnames=("config", "max_new_tokens", "batch_sharding"))
def _decode(params, rope, tokens, lengths, eos_id, *, config, max_new_tokens, batch_sharding):
    """New tokens int32 `[B, N]`; rows of length 0 are padding of the batch, and decode nothing of use."""
    variables = {"params": params}
    head = head_kernel(params, config)
    states, (keys, values) = Llama(config).apply(variables, tokens, rope, project=False, keep_keys=True)
    last = jnp.maximum(lengths - 1, 0)
    # Only the last state of each prompt meets the vocabulary: T x V logits are never formed.
    states = jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]
    logits = jnp.dot(states, head.astype(states.dtype), preferred_element_type=jnp.float32)
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    # Slots of padding hold keys of padding until the token at that position overwrites them; nothing before
    # that position reads them.
    room = ((0, 0), (0, 0), (0, max_new_tokens), (0, 0), (0, 0))
    cache = (jnp.pad(keys, room), jnp.pad(values, room))
    new = jnp.zeros((tokens.shape[0], max_new_tokens), jnp.int32).at[:, 0].set(token)
    ended = (token == eos_id) | (lengths == 0)

    def unfinished(carry):
        step, _, _, _, ended = carry
        return (step < max_new_tokens) & ~jnp.all(ended)

    def advance(carry):
        step, token, cache, new, ended = carry
        positions = (last + step)[:, None]
        logits, cache = Llama(config).apply(variables, token[:, None], rope, positions, cache=cache)
        token = jnp.argmax(logits[:, 0], axis=-1).astype(jnp.int32)
        # What an ended row computes is of no use, and must not end up as a second answer.
        token = jnp.where(ended, jnp.maximum(eos_id, 0), token)
        return step + 1, token, cache, new.at[:, step].set(token), ended | (token == eos_id)

    *_, new, _ = jax.lax.while_loop(unfinished, advance, (jnp.int32(1), token, cache, new, ended))
    if batch_sharding is not None:
        # Every process gets every row.
        new = jax.lax.with_sharding_constraint(new, NamedSharding(batch_sharding.mesh, PartitionSpec()))
    return new
