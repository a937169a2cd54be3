"""Every backend of attention against attention by definition, in float64."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from rope_jax.errors import InputError
from rope_jax.model.attention import by_head
from rope_jax.model.backends import attend, check_backend, ring_pieces
from rope_jax.model.config import LlamaConfig
from rope_jax.model.cudnn import CudnnPieces, cudnn_attention
from rope_jax.model.flash import Tokens
from rope_jax.model.llama import abstract_params
from rope_jax.model.ring import BlockPieces, ring_attention, zigzag
from rope_jax.model.splash import SplashPieces, splash_attention
from rope_jax.sharding import make_mesh, spec
from rope_jax.training.context import attention_on, in_ring_order
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


def ring(query, key, value, segments, window, pieces=None):
    """Through the order of the ring and back, on two rows and four pieces of a sequence."""
    mesh = make_mesh(2, 1, 1, context=4)
    specs = *(spec("batch", "length", heads) for heads in ("heads", "kv_heads")), spec("batch", "length")
    pieces = pieces or ring_pieces(dataclasses.replace(MODEL, sliding_window=window, attention_chunk=4))
    rows = in_ring_order((query, key, value, segments), mesh)
    out = ring_attention(*rows, mesh=mesh, specs=specs, axis="context", pieces=pieces)
    return out[:, np.argsort(zigzag(query.shape[1], 4))]


BACKENDS = {
    "cpu": lambda *x: attend(*x[:4], dataclasses.replace(MODEL, sliding_window=x[4])),
    # The arguments that cuDNN is called with, computed by what JAX defines them by.
    "cudnn's definition": partial(cudnn_attention, implementation="xla"),
    "splash, interpreted": partial(splash_attention, interpret=True),
    "ring": ring,
    "ring of splash, interpreted": partial(ring, pieces=SplashPieces(interpret=True)),
}
MODERN_GPU = jax.default_backend() == "gpu"


@pytest.mark.parametrize("documents", ["packed", "one"])
@pytest.mark.parametrize(
    ("backend", "window"),
    # A ring of splash has no window, and refuses models that have one (tests/training/test_context.py).
    [(name, window) for name in BACKENDS for window in (None, 13) if not (window and "ring of splash" in name)],
)
def test_equals_the_definition_in_value_and_gradient(backend, window, documents):
    # Neither even nor a multiple of anything, but for the ring, which is cut into eight pieces.
    length = T if "ring" in backend else T - 3
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


class CudnnByDefinition:
    """The two primitives of cuDNN's attention as JAX documents them, of heads before tokens: dense, in float32."""

    def __init__(self, gradient):
        self.gradient = gradient

    def bind(self, query, key, value, bias, *rest, scale, mask_type, layout, sliding_window_length, **others):
        assert layout == fused_attention_stablehlo.AttentionLayout.BNTH.value and sliding_window_length is None
        assert others["dropout_rate"] == 0 and all(x.size == 0 for x in rest[:6])
        group = query.shape[1] // key.shape[1]
        wide_key, wide_value = (jnp.repeat(x, group, axis=1) for x in (key, value))
        scores = scale * jnp.einsum("bhtd,bhsd->bhts", query, wide_key) + (bias if bias.size else 0)
        if mask_type is fused_attention_stablehlo.MaskType.CAUSAL:
            scores = jnp.where(jnp.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf)
        if not self.gradient:
            log_sum = jax.nn.logsumexp(scores, axis=-1)
            return jnp.einsum("bhts,bhsd->bhtd", jnp.exp(scores - log_sum[..., None]), wide_value), log_sum
        log_sum, out, d_out = rest[6:]
        weights = jnp.exp(scores - log_sum[..., None])
        d_scores = jnp.einsum("bhtd,bhsd->bhts", d_out, wide_value) - jnp.sum(d_out * out, -1, keepdims=True)
        d_scores *= weights * scale
        wide = jnp.einsum("bhts,bhtd->bhsd", d_scores, query), jnp.einsum("bhts,bhtd->bhsd", weights, d_out)
        d_key, d_value = (x.reshape(*key.shape[:2], group, *key.shape[2:]).sum(2) for x in wide)
        return jnp.einsum("bhts,bhsd->bhtd", d_scores, wide_key), d_key, d_value


@pytest.mark.parametrize("documents", ["packed", "one"])
@pytest.mark.parametrize("window", [None, 13])
def test_ring_of_cudnn_by_the_definition_of_its_primitives(window, documents, monkeypatch):
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "get_large_negative_number", lambda dtype: jnp.asarray(-1e9, dtype))
    for gradient, name in enumerate(("fwd", "bwd")):
        wrapper = f"_dot_product_attention_{name}_p_wrapper"
        monkeypatch.setattr(fused_attention_stablehlo, wrapper, CudnnByDefinition(bool(gradient)))
    length = T + 8  # pieces of nine tokens, of which it takes even numbers only
    query, key, value, cotangent = inputs(length)
    segments = random_segments(B, length) if documents == "packed" else np.ones((B, length), np.int32)
    out, gradients = reference(query, key, value, cotangent, segments, window)

    def both(*arrays):
        found, pull = jax.vjp(lambda *x: ring(*x, segments, window, CudnnPieces(window)), *arrays)
        return found, pull(jnp.asarray(cotangent))

    found, ours = jax.jit(both)(query, key, value)
    np.testing.assert_allclose(found, out, atol=2e-6)  # as above
    for got, expected in zip(ours, gradients):
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("attention", "window", "pieces"),
    [("cpu", 13, BlockPieces(24, 13)), ("cudnn", 13, CudnnPieces(13)), ("splash", None, SplashPieces())],
)
def test_a_ring_computes_with_what_was_asked_for(attention, window, pieces):
    assert ring_pieces(dataclasses.replace(MODEL, attention=attention, sliding_window=window)) == pieces


def test_ring_of_cudnn_lowers_to_its_fused_attention(monkeypatch):
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    text = lowered_ring(CudnnPieces(), "cuda")
    for name in ("ScaleBiasSoftmax", "ScaleBiasSoftmaxBackward", "Softmax", "SoftmaxBackward"):
        assert f"@__cudnn$fmha{name}(" in text


def test_ring_of_splash_lowers_to_kernels_for_tpus():
    # Products in the first step and in the others, each with kernels of its own for a causal mask and for none.
    assert lowered_ring(SplashPieces(), "tpu").count("@tpu_custom_call") >= 3 * 3


def lowered_ring(pieces, platform):
    """As `lowered`, of a ring of four devices."""
    heads, keys = (jax.ShapeDtypeStruct((2 * B, 2048, n, 128), jnp.bfloat16) for n in (H, K))
    segments = jax.ShapeDtypeStruct((2 * B, 2048), jnp.int32)
    out = partial(ring, window=None, pieces=pieces)
    gradient = jax.grad(lambda *x: jnp.sum(out(*x).astype(jnp.float32)), (0, 1, 2))
    return jax.jit(gradient).trace(heads, keys, keys, segments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.skipif(not MODERN_GPU, reason="cuDNN needs a GPU")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("documents", ["packed", "one"])
def test_pieces_of_cudnn_equal_those_of_plain_jax(causal, documents):
    """What a ring is made of, for a ring itself needs several GPUs."""
    query, key, value, cotangent = (jnp.asarray(x, jnp.bfloat16) for x in inputs(T))
    query, cotangent = (by_head(x, K) for x in (query, cotangent))
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    segments = random_segments(B, T) if documents == "packed" else np.ones((B, T), np.int32)
    keys = Tokens(jnp.arange(T), jnp.asarray(segments))
    queries = keys if causal else Tokens(keys.places + T, keys.segments)
    arrays = query, key, value, queries, keys
    out, log_sum = BlockPieces(16).attend(*arrays, causal)
    found, found_sum = CudnnPieces().attend(*arrays, causal)
    # bfloat16 keeps eight bits, as above; the log of the sums is in float32 in both.
    np.testing.assert_allclose(found, out, atol=0.04)
    np.testing.assert_allclose(found_sum, log_sum, atol=1e-3)
    # Under the sum of a softmax over more keys than these.
    rest = log_sum + 0.5, out.astype(jnp.bfloat16), cotangent, causal
    for got, expected in zip(CudnnPieces().gradient(*arrays, *rest), BlockPieces(16).gradient(*arrays, *rest)):
        np.testing.assert_allclose(got, expected, atol=0.15)


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
