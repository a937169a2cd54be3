"""Attention by NVIDIA's cuDNN: of whole sequences, and of the pieces that a ring cuts them into.

Shapes: B rows, T tokens, H query heads, K key heads, G = H / K, D head dimension; C tokens of a piece.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from rope_jax.model.flash import Tokens, padded_to_multiple

_even = partial(padded_to_multiple, multiple=2)  # with a mask, cuDNN differentiates no odd lengths


def cudnn_attention(query, key, value, segment_ids, window=None, implementation: str = "cudnn"):
    """Causal self-attention by cuDNN, through `jax.nn.dot_product_attention`.

    That interface knows no documents, and lengths alone (`key_value_seq_lengths`) cannot say where the second one of
    a row begins. So rows of several documents get a mask, which cuDNN adds to the scores: correct in value and
    gradient, for 4 T^2 bytes per row on top (the mask and a gradient of it that nobody reads). Where every row is a
    single document, the kernel runs without it.

    Args:
        query: `[B, T, H, D]`, bfloat16 or float16, already rotated.
        key: `[B, T, K, D]`, already rotated.
        value: `[B, T, K, D]`.
        segment_ids: int32 `[B, T]`; a query sees only keys of its own id.
        window: tokens that a query sees, its own included; None is all before it.
        implementation: of `jax.nn.dot_product_attention`; 'xla' is its reference.

    Returns:
        `[B, T, H, D]` in the dtype of `query`.
    """
    length = query.shape[1]
    # Behind all others, padding is not seen by them under a causal mask.
    query, key, value = (_even(x, 1) for x in (query, key, value))
    segment_ids = _even(segment_ids, 1, mode="edge")
    attention = partial(jax.nn.dot_product_attention, is_causal=True, implementation=implementation)

    def documents(query, key, value):
        mask = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
        if window is not None:
            places = jnp.arange(query.shape[1])
            mask &= places > places[:, None] - window
        return attention(query, key, value, mask=mask)

    def one_document(query, key, value):
        return attention(query, key, value, local_window_size=None if window is None else (window - 1, 0))

    single = jnp.all(segment_ids == segment_ids[:, :1])
    return jax.lax.cond(single, one_document, documents, query, key, value)[:, :length]


@dataclasses.dataclass(frozen=True)
class CudnnPieces:
    """The products of a ring, as `rope_jax.model.ring.BlockPieces`, by cuDNN; documents as in `cudnn_attention`.

    The public interface rounds the log of a softmax's sum to 16 bits and differentiates a whole softmax only, so this
    calls what it is made of. Partial outputs and gradients leave the kernel in 16 bits; sums over pieces are in
    float32.

    Attributes:
        window: places that a query sees, its own included; None is all before it.
    """

    window: int | None = None

    def attend(self, query, key, value, queries: Tokens, keys: Tokens, causal: bool):
        shape = query.shape

        def product(bias, query, key, value):
            return _cudnn()._dot_product_attention(*_operands(query, key, value, bias), *_settings(bias, causal), True)

        out, log_sum = self._either(product, query, key, value, queries, keys)
        return out[:, :, : shape[3]].reshape(shape).astype(jnp.float32), log_sum[:, :, : shape[3]].reshape(shape[:4])

    def gradient(self, query, key, value, queries: Tokens, keys: Tokens, log_sum, out, d_out, causal: bool):
        b, k, g, size, d = query.shape
        log_sum = _even(log_sum.reshape(b, k * g, size), 2)
        out, d_out = (_even(x.reshape(b, k * g, size, d), 2) for x in (out, d_out))

        def product(bias, query, key, value):
            residuals = *_operands(query, key, value, bias), log_sum, out
            return _cudnn()._dot_product_attention_bwd_rule(*_settings(bias, causal), False, residuals, d_out)[:3]

        grads = self._either(product, query, key, value, queries, keys)
        shapes = query.shape, key.shape, value.shape
        return tuple(x[:, :, :size].reshape(shape).astype(jnp.float32) for x, shape in zip(grads, shapes))

    def _either(self, product, query, key, value, queries, keys):
        """`product(bias, query, key, value)` of heads `[B, heads, C, D]`, with a mask only where one is needed."""
        b, k, g, size, d = query.shape
        arrays = [_even(x, 2) for x in (query.reshape(b, k * g, size, d), key, value)]
        # Padding is of documents of its own: in a piece that comes before, keys behind a query are seen too.
        ids = _even(queries.segments, 1, constant_values=-1), _even(keys.segments, 1, constant_values=-2)

        def masked(*arrays):
            seen = ids[0][:, None, :, None] == ids[1][:, None, None, :]
            if self.window is not None:
                seen &= _even(queries.places, 0)[:, None] - _even(keys.places, 0) < self.window
            return product(_cudnn().combine_bias_and_mask(None, seen, query.dtype), *arrays)

        if self.window is not None:
            return masked(*arrays)
        single = jnp.all(ids[0] == ids[0][:, :1]) & jnp.all(ids[1] == ids[0][:, :1])
        return jax.lax.cond(single, partial(product, None), masked, *arrays)


def _cudnn():
    from jax._src.cudnn import fused_attention_stablehlo

    return fused_attention_stablehlo


def _operands(query, key, value, bias):
    """Queries, keys, values and bias; lengths, offsets and pages, which are not used."""
    unused = jnp.zeros(0, query.dtype)
    return query, key, value, unused if bias is None else bias, *[unused] * 6


def _settings(bias, causal):
    """Scale (queries have theirs), seed and rate of dropout, bias and its gradient, mask, layout, window, version."""
    cudnn = _cudnn()
    mask = cudnn.MaskType.CAUSAL if causal else cudnn.MaskType.NO_MASK
    biased = bias is not None
    return 1.0, 42, 0.0, (biased, biased), mask, cudnn.AttentionLayout.BNTH.value, None, cudnn.check_cudnn_version()
