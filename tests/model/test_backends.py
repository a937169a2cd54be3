"""Every backend of attention against attention by definition, in float64."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from rope_jax.errors import InputError
from rope_jax.model.backends import attend, check_backend, cudnn_attention, splash_attention
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import abstract_params
from rope_jax.model.ring import zigzag
from rope_jax.training.context import attention_on, in_ring_order
from rope_jax.training.sharding import make_mesh
from tests.model.test_attention import random_segments

B, T, H, K, D = 2, 64, 4, 2, 16
MODEL = LlamaConfig(64, 64, 64, 1, H, K, D, architecture="mistral", attention_chunk=24)


def inputs(length, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(B, length, heads, D) for heads in (H, K, K, H)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def reference(query, key, value, cotangent, segments, window):
    """Outputs and gradients of query, key and value, written out in float64."""
    query, key, value, cotangent = (np.asarray(x, np.float64) for x in (query, key, value, cotangent))
    length = query.shape[1]
    back = np.arange(length)[:, None] - np.arange(length)
    allowed = (back >= 0) & (back < (window or length)) & (segments[:, :, None] == segments[:, None, :])
    wide_key, wide_value = (np.repeat(x, H // K, axis=2) for x in (key, value))
    scores = np.einsum("bthd,bshd->bhts", query, wide_key) / np.sqrt(D)
    weights = np.exp(np.where(allowed[:, None], scores, -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bhts,bshd->bthd", weights, wide_value)
    d_weights = np.einsum("bthd,bshd->bhts", cotangent, wide_value)
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True)) / np.sqrt(D)
    d_query = np.einsum("bhts,bshd->bthd", d_scores, wide_key)
    d_key = np.einsum("bhts,bthd->bshd", d_scores, query)
    d_value = np.einsum("bhts,bthd->bshd", weights, cotangent)
    return out, [d_query, *(x.reshape(B, length, K, H // K, D).sum(3) for x in (d_key, d_value))]


def ring(query, key, value, segments, window):
    """Through the order of the ring and back, on two rows and four pieces of a sequence."""
    mesh = make_mesh(2, 1, 1, context=4)
    config = dataclasses.replace(MODEL, sliding_window=window, attention_chunk=4)
    out = attention_on(config, mesh)(*in_ring_order((query, key, value, segments), mesh))
    return out[:, np.argsort(zigzag(query.shape[1], 4))]


BACKENDS = {
    "cpu": lambda *x: attend(*x[:4], dataclasses.replace(MODEL, sliding_window=x[4])),
    # The arguments that cuDNN is called with, computed by what JAX defines them by.
    "cudnn's definition": partial(cudnn_attention, implementation="xla"),
    "splash, interpreted": partial(splash_attention, interpret=True),
    "ring": ring,
}
MODERN_GPU = jax.default_backend() == "gpu"


@pytest.mark.parametrize("documents", ["packed", "one"])
@pytest.mark.parametrize("window", [None, 13])
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_definition_in_value_and_gradient(backend, window, documents):
    # Neither even nor a multiple of anything, but for the ring, which is cut into eight pieces.
    length = T if backend == "ring" else T - 3
    query, key, value, cotangent = inputs(length)
    segments = random_segments(B, length) if documents == "packed" else np.ones((B, length), np.int32)
    out, gradients = reference(query, key, value, cotangent, segments, window)

    def both(*arrays):
        found, pull = jax.vjp(lambda *x: BACKENDS[backend](*x, segments, window), *arrays)
        return found, pull(jnp.asarray(cotangent))

    found, ours = jax.jit(both)(query, key, value)
    # float32 sums over at most 64 terms of order 1; gradients of keys add up queries as well.
    np.testing.assert_allclose(found, out, atol=2e-6)
    for got, expected in zip(ours, gradients):
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.skipif(not MODERN_GPU, reason="cuDNN needs a GPU")
@pytest.mark.parametrize("window", [None, 13])
@pytest.mark.parametrize("documents", ["packed", "one"])
def test_cudnn_equals_the_definition(window, documents):
    query, key, value, cotangent = (np.float32(jnp.asarray(x, jnp.bfloat16)) for x in inputs(T - 3))
    segments = random_segments(B, T - 3) if documents == "packed" else np.ones((B, T - 3), np.int32)
    out, gradients = reference(query, key, value, cotangent, segments, window)
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in (query, key, value)]
    found, pull = jax.vjp(lambda *x: cudnn_attention(*x, segments, window), *arrays)
    # bfloat16 keeps eight bits, in weights as in results, which are of order 3 and, of keys' gradients, 10.
    np.testing.assert_allclose(np.float32(found), out, atol=0.04)
    for got, expected in zip(pull(jnp.asarray(cotangent, jnp.bfloat16)), gradients):
        np.testing.assert_allclose(np.float32(got), expected, atol=0.15)


def lowered(attention, platform):
    """What a compiler for another platform is given for attention and its gradient, at LLaMA2's head size."""
    heads, keys = (jax.ShapeDtypeStruct((B, 1023, n, 128), jnp.bfloat16) for n in (H, K))
    segments = jax.ShapeDtypeStruct((B, 1023), jnp.int32)
    gradient = jax.grad(lambda *x: jnp.sum(attention(*x).astype(jnp.float32)), (0, 1, 2))
    return jax.jit(gradient).trace(heads, keys, keys, segments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("window", [None, 100])
def test_splash_lowers_to_kernels_for_tpus(window):
    text = lowered(partial(splash_attention, window=window), "tpu")
    assert text.count("@tpu_custom_call") == 3  # forward, and the gradients of queries and of keys


@pytest.mark.parametrize("window", [None, 100])
def test_cudnn_lowers_to_its_fused_attention(window, monkeypatch):
    # The version is the one thing that JAX asks a library on this machine for.
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    text = lowered(partial(cudnn_attention, window=window), "cuda")
    for name in ("ScaleBiasSoftmax", "ScaleBiasSoftmaxBackward", "Softmax", "SoftmaxBackward"):
        assert f"@__cudnn$fmha{name}(" in text
    # No scores outside of the kernels: what is as large as T x T is the mask, one for all heads.
    assert f"tensor<{B}x{H}x1024x1024x" not in text


def test_kernels_run_on_each_devices_rows_and_heads(monkeypatch):
    """A kernel is opaque to the compiler: under a mesh it must be given its part of rows and heads."""
    mesh = make_mesh(2, 2, 2)
    rng = np.random.default_rng(1)
    query, key, value = (rng.normal(size=(8, T, heads, D)).astype(np.float32) for heads in (H, K, K))
    segments = random_segments(8, T)
    monkeypatch.setattr("rope_jax.model.backends.splash_attention", partial(splash_attention, interpret=True))

    def gradients(attention):
        return jax.jit(jax.grad(lambda *x: jnp.sum(attention(*x, segments) ** 2), (0, 1, 2)))(query, key, value)

    expected = gradients(partial(attend, config=MODEL))
    found = gradients(attention_on(dataclasses.replace(MODEL, attention="splash"), mesh))
    for ours, theirs in zip(found, expected):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)  # as above, and a square's derivative doubles it


@pytest.mark.parametrize(
    ("platform", "changes", "message"),
    [
        ("cpu", {"attention": "splash"}, r"config\.model\.attention is 'splash', which needs a tpu, .* a cpu here"),
        ("gpu", {"attention": "splash"}, r"'splash', which needs a tpu, .* a gpu here"),
        ("cpu", {"attention": "cudnn"}, r"'cudnn', which needs a gpu, .* a cpu here: 'cpu' runs anywhere"),
        ("gpu", {"attention": "cudnn"}, r"'cudnn', which computes in 16 bits: set config\.model\.dtype"),
        ("gpu", {"attention": "cudnn", "dtype": "bfloat16", "head_dim": 12}, r"multiples of 8 up to 128 on a A100"),
        ("gpu", {"attention": "cudnn", "dtype": "bfloat16", "head_dim": 192}, r"up to 128 .* the model's is 192"),
    ],
)
def test_what_was_asked_for_and_is_missing_is_refused(platform, changes, message, monkeypatch):
    device = type("Device", (), {"compute_capability": "8.0", "device_kind": "A100"})()
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    with pytest.raises(InputError, match=message):
        check_backend(dataclasses.replace(MODEL, **changes))
    check_backend(MODEL)
    if platform == "gpu":
        check_backend(dataclasses.replace(MODEL, attention="cudnn", dtype="bfloat16"))


def test_parameters_are_made_without_the_backend():
    shapes = jax.tree.map(lambda leaf: leaf.shape, abstract_params(dataclasses.replace(MODEL, attention="cudnn")))
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, abstract_params(MODEL))


def test_unknown_name():
    with pytest.raises(InputError, match=r"model\.attention is 'flash': use one of cpu, cudnn, splash"):
        dataclasses.replace(MODEL, attention="flash")
