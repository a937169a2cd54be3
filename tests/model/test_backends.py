"""Every backend of attention against attention by definition, in float64."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from rope_jax.errors import InputError
from rope_jax.model.attention import causal_attention
from rope_jax.model.backends import attend, check_backend, ring_kernel
from rope_jax.model.config import LlamaConfig
from rope_jax.model.kernels import cudnn_attention, pallas_attention, splash_attention, splash_piece
from rope_jax.model.llama import abstract_params
from rope_jax.model.ring import Ring, ring_attention, zigzag
from rope_jax.sharding import make_mesh, spec
from rope_jax.training.context import attention_on, in_ring_order
from tests.model.references import allowed_keys, dense, random_segments

B, T, H, K, D = 2, 64, 4, 2, 16
MODEL = LlamaConfig(64, 64, 64, 1, H, K, D, architecture="mistral", attention_chunk=24)
HALF = {"dtype": "bfloat16"}


def inputs(length, rows=B, seed=0):
    """Query, key, value and cotangent."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(rows, length, heads, D)).astype(np.float32) for heads in (H, K, K, H)]


def documents(length, rows=B):
    return {"packed": random_segments(rows, length), "one": np.ones((rows, length), np.int32)}


def ring(query, key, value, segments, window=None, kernel=None):
    """Through the order of the ring and back, on two rows and four pieces of a sequence."""
    mesh = make_mesh(2, 1, 1, context=4)
    specs = *(spec("batch", "length", heads) for heads in ("heads", "kv_heads")), spec("batch", "length")
    rows = in_ring_order((query, key, value, segments), mesh)
    out = ring_attention(*rows, Ring(mesh, "context", specs, 4, window, kernel))
    return out[:, np.argsort(zigzag(query.shape[1], 4))]


def cudnn(*arrays, window=None):
    """The arguments that cuDNN is called with, computed by what JAX defines them by."""
    packed = partial(causal_attention, chunk=24, window=window)
    return cudnn_attention(*arrays, packed=packed, window=window, implementation="xla")


pallas = partial(pallas_attention, interpret=True)
BACKENDS = {
    "cpu": lambda *x, window=None: attend(*x, dataclasses.replace(MODEL, sliding_window=window)),
    "cudnn's definition": cudnn,
    "pallas, interpreted": pallas,
    "splash, interpreted": partial(splash_attention, interpret=True),
    "ring": ring,
    "ring of splash, interpreted": partial(ring, kernel=partial(splash_piece, interpret=True)),
}
WINDOWLESS = ("pallas, interpreted", "ring of splash, interpreted")
ON_GPU = jax.default_backend() == "gpu"


def value_and_gradients(attention):
    """Compiled: outputs, and gradients of query, key and value under a cotangent."""

    def both(query, key, value, cotangent, segments):
        found, pull = jax.vjp(lambda *x: attention(*x, segments), query, key, value)
        return found, pull(cotangent)

    return jax.jit(both)


@pytest.mark.parametrize(
    ("backend", "window"),
    [(name, None) for name in BACKENDS] + [(name, 13) for name in BACKENDS if name not in WINDOWLESS],
)
def test_equals_the_definition_in_value_and_gradient(backend, window):
    # Neither even nor a multiple of anything, but for the ring, which is cut into eight pieces. Two blocks of 'pallas'.
    length = T if "ring" in backend else 3 * T - 3 if backend == "pallas, interpreted" else T - 3
    arrays = inputs(length)
    compiled = value_and_gradients(partial(BACKENDS[backend], **({"window": window} if window else {})))
    for segments in documents(length).values():
        found, ours = compiled(*arrays, segments)
        out, gradients = dense(*arrays[:3], allowed_keys(segments, window), arrays[3])
        # float32 sums over at most 64 terms of order 1; gradients of keys add up queries as well.
        np.testing.assert_allclose(found, out, atol=2e-6)
        for got, expected in zip(ours, gradients):
            np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.skipif(not ON_GPU, reason="the kernels need a GPU")
@pytest.mark.parametrize(("backend", "window"), [("cudnn", None), ("cudnn", 13), ("pallas", None)])
def test_a_gpus_kernels_equal_the_definition(backend, window):
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in inputs(T - 3)]
    config = dataclasses.replace(MODEL, attention=backend, sliding_window=window, dtype="bfloat16")
    compiled = value_and_gradients(partial(attend, config=config))
    for segments in documents(T - 3).values():
        found, ours = compiled(*arrays, segments)
        rounded = [np.float32(x) for x in arrays]
        out, gradients = dense(*rounded[:3], allowed_keys(segments, window), rounded[3])
        # bfloat16 keeps eight bits, in weights as in results, which are of order 3 and, of keys' gradients, 10.
        np.testing.assert_allclose(np.float32(found), out, atol=0.04)
        for got, expected in zip(ours, gradients):
            np.testing.assert_allclose(np.float32(got), expected, atol=0.15)


def lowered(attention, platform, rows=B, length=1023):
    """What a compiler for another platform is given for attention and its gradient, at LLaMA2's head size."""
    heads, keys = (jax.ShapeDtypeStruct((rows, length, n, 128), jnp.bfloat16) for n in (H, K))
    segments = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    gradient = jax.grad(lambda *x: jnp.sum(attention(*x).astype(jnp.float32)), (0, 1, 2))
    return jax.jit(gradient).trace(heads, keys, keys, segments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("window", [None, 100])
def test_splash_lowers_to_kernels_for_tpus(window):
    text = lowered(partial(splash_attention, window=window), "tpu")
    assert text.count("@tpu_custom_call") == 3  # forward, and the gradients of queries and of keys


@pytest.mark.parametrize("window", [None, 100])
def test_cudnn_lowers_to_its_fused_attention(window, monkeypatch):
    # The version is the one thing that JAX asks a library on this machine for. There is no public way to state it:
    # where this name moves, this test fails, and nothing else.
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    packed = partial(causal_attention, chunk=256, window=window)
    text = lowered(partial(cudnn_attention, packed=packed, window=window), "cuda")
    for name in ("Softmax", "SoftmaxBackward"):
        assert f"@__cudnn$fmha{name}(" in text
    # Neither scores nor a mask outside of the kernels.
    assert not re.search(r"(1023|1024)x\1x", text)

    # Rows of several documents are for JAX's kernel, which has no window.
    config = dataclasses.replace(MODEL, attention="cudnn", sliding_window=window, head_dim=128, **HALF)
    arrays = [jax.ShapeDtypeStruct((B, T, heads, 128), jnp.bfloat16) for heads in (H, K, K)]
    program = jax.make_jaxpr(partial(attend, config=config))(*arrays, np.ones((B, T), np.int32))
    assert ("mha_forward" in str(program)) == (window is None)


def test_pallas_lowers_to_kernels_for_gpus():
    device = AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("one",), abstract_device=device)):
        text = lowered(pallas_attention, "cuda")
    assert text.count("@__gpu$xla.gpu.triton") == 3
    for name in ("forward", "preprocess_backward", "backward"):
        assert f'name = "mha_{name}"' in text
    assert not re.search(r"(1023|1024)x\1x", text)  # as above


@pytest.mark.parametrize(
    ("attention", "window", "kernel"),
    [("cpu", 13, None), ("cudnn", 13, None), ("pallas", None, None), ("splash", None, splash_piece)],
)
def test_a_ring_computes_with_what_was_asked_for(attention, window, kernel):
    config = dataclasses.replace(MODEL, attention=attention, sliding_window=window)
    assert ring_kernel(config) == kernel
    on = attention_on(config, make_mesh(2, 1, 1, context=4)).keywords["ring"]
    assert (on.kernel, on.window, on.chunk, on.size) == (kernel, window, 24, 4)


@pytest.mark.parametrize(("kernel", "platform", "calls"), [(splash_piece, "tpu", 2), (None, "cuda", 0)])
def test_a_ring_lowers_for_accelerators(kernel, platform, calls):
    # Kernels under a causal mask and under none, which the steps share.
    text = lowered(partial(ring, kernel=kernel), platform, 2 * B, 2048)
    assert text.count("custom_call @tpu_custom_call") >= calls


def test_kernels_run_on_each_devices_rows_and_heads(monkeypatch):
    """A kernel is opaque to the compiler: under a mesh it must be given its part of rows and heads."""
    *arrays, _ = inputs(T, rows=8)
    segments = random_segments(8, T)
    monkeypatch.setattr("rope_jax.model.backends.splash_attention", partial(splash_attention, interpret=True))
    attention = attention_on(dataclasses.replace(MODEL, attention="splash"), make_mesh(2, 2, 2))
    found, gradients = value_and_gradients(attention)(*arrays, np.ones_like(arrays[0]), segments)
    out, expected = dense(*arrays, allowed_keys(segments), np.ones_like(arrays[0]))
    np.testing.assert_allclose(found, out, atol=2e-6)
    for ours, theirs in zip(gradients, expected):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)  # as above


@pytest.mark.parametrize(
    ("platform", "changes", "field", "message"),
    [
        ("cpu", {"attention": "splash"}, "attention", r"^`attention` is 'splash', which needs a tpu, .* a cpu here"),
        ("gpu", {"attention": "splash"}, "attention", r"needs a tpu, .* a gpu here"),
        ("cpu", {"attention": "cudnn"}, "attention", r"needs a gpu, .* a cpu here: 'cpu' runs anywhere"),
        ("gpu", {"attention": "cudnn"}, "dtype", r"16 bits: set `dtype`"),
        ("gpu", {"attention": "cudnn", "head_dim": 12} | HALF, "attention", r"multiples of 8 from 8 to 128 .* is 12"),
        ("gpu", {"attention": "cudnn", "head_dim": 192} | HALF, "attention", r"the model's is 192"),
        ("gpu", {"attention": "pallas", "head_dim": 8} | HALF, "attention", r"of 2 from 16 to 128"),
        ("gpu", {"attention": "pallas", "sliding_window": 9} | HALF, "attention", r"no sliding window, .* is 9"),
    ],
)
def test_an_unavailable_backend_is_refused(platform, changes, field, message, monkeypatch):
    kind = {"compute_capability": "8.0", "device_kind": "A100", "platform": platform}
    monkeypatch.setattr(jax, "local_devices", lambda: [type("Device", (), kind)()])
    with pytest.raises(InputError, match=message) as error:
        check_backend(dataclasses.replace(MODEL, **changes))
    assert error.value.field == field
    check_backend(MODEL)
    if platform == "gpu":
        check_backend(dataclasses.replace(MODEL, attention="cudnn", **HALF))


def test_parameters_are_made_without_the_backend():
    shapes = jax.tree.map(lambda leaf: leaf.shape, abstract_params(dataclasses.replace(MODEL, attention="cudnn")))
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, abstract_params(MODEL))
