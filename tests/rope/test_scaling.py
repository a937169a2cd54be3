"""Closed-form scale vectors against transformers' own initialisers."""

import csv

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rope_jax.errors import InputError
from rope_jax.rope import scaling
from rope_jax.rope.embedding import frequencies

# Hugging Face rounds several times in float32 where the closed forms round once.
RTOL = 2e-6


def hugging_face(rope_type, base, head_dim, seq_len=None, context=8192, **parameters):
    """Inverse frequencies and attention factor that transformers would serve."""
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=context,
        rope_parameters={"rope_type": rope_type, "rope_theta": base, **parameters},
    )
    frequency, attention_factor = ROPE_INIT_FUNCTIONS[rope_type](config, device="cpu", seq_len=seq_len)
    return frequency.numpy(), attention_factor


def assert_serves(vector, base, head_dim, expected):
    frequency, attention_factor = expected
    np.testing.assert_allclose(frequencies(base, head_dim) / vector.factors, frequency, rtol=RTOL)
    assert float(vector.attention_factor) == pytest.approx(attention_factor, rel=1e-6)


@pytest.mark.parametrize(("base", "head_dim"), [(10000.0, 128), (500000.0, 64), (10000.0, 8)])
@pytest.mark.parametrize("extension", [1.0, 2.0, 4.0, 32.0])
def test_position_interpolation(base, head_dim, extension):
    expected = hugging_face("linear", base, head_dim, factor=extension)
    assert_serves(scaling.position_interpolation(head_dim, extension), base, head_dim, expected)


@pytest.mark.parametrize(("base", "head_dim"), [(10000.0, 128), (500000.0, 64), (10000.0, 8)])
@pytest.mark.parametrize("extension", [2.0, 4.0])
def test_ntk(base, head_dim, extension):
    # Dynamic NTK extends by s l / L - (s - 1) at length l, which is s where l = L (2 s - 1) / s.
    original = 1024
    length = int(original * (2 * extension - 1) / extension)
    expected = hugging_face("dynamic", base, head_dim, seq_len=length, context=original, factor=extension)
    assert_serves(scaling.ntk(head_dim, extension), base, head_dim, expected)


@pytest.mark.parametrize(
    ("base", "head_dim", "original"),
    [
        (10000.0, 128, 4096),
        (500000.0, 128, 8192),
        (10000.0, 32, 128),
        (10000.0, 64, 131072),
        (10000.0, 4, 128),
    ],
)
@pytest.mark.parametrize(
    "options",
    [
        {"factor": 2.0},
        {"factor": 4.0},
        {"factor": 40.0, "beta_fast": 16.0, "beta_slow": 2.0},
        {"factor": 8.0, "truncate": False},
        {"factor": 8.0, "attention_factor": 1.5},
        {"factor": 1.0},
    ],
)
def test_yarn(base, head_dim, original, options):
    expected = hugging_face("yarn", base, head_dim, original_max_position_embeddings=original, **options)
    options = dict(options)
    vector = scaling.yarn(base, head_dim, options.pop("factor"), original, **options)
    assert_serves(vector, base, head_dim, expected)


@pytest.mark.parametrize(("base", "head_dim"), [(500000.0, 128), (500000.0, 64), (10000.0, 32)])
@pytest.mark.parametrize(("extension", "low", "high"), [(8.0, 1.0, 4.0), (32.0, 1.0, 4.0), (4.0, 2.0, 16.0)])
def test_llama3(base, head_dim, extension, low, high):
    expected = hugging_face(
        "llama3",
        base,
        head_dim,
        factor=extension,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=8192,
    )
    vector = scaling.llama3(frequencies(base, head_dim), extension, 8192, low, high)
    assert_serves(vector, base, head_dim, expected)


@pytest.mark.parametrize("extension", [1.0, 4.0, 32.0])
def test_longrope(extension):
    rng = np.random.default_rng(0)
    short, long = 1 + rng.random(16), 1 + 30 * rng.random(16)
    for length, factors in ((4096, short), (4097, long)):
        expected = hugging_face(
            "longrope",
            10000.0,
            32,
            seq_len=length,
            short_factor=short.tolist(),
            long_factor=long.tolist(),
            factor=extension,
            original_max_position_embeddings=4096,
        )
        attention_factor = scaling.longrope_attention_factor(extension, 4096)
        vector = scaling.explicit(factors.tolist(), 32, attention_factor=attention_factor)
        assert_serves(vector, 10000.0, 32, expected)


def test_longrope_published_factors(shared):
    with open(shared / "data" / "longrope_factors" / "ft_la2_128k.csv") as file:
        rows = [[float(cell) for cell in row if cell] for row in csv.reader(file) if row]
    vector = scaling.explicit(np.reshape(rows, (32, 64)), 128, layers=32)
    assert vector.factors.shape == (32, 64) and float(vector.factors.min()) >= 1


def test_extrapolation_and_ends():
    np.testing.assert_array_equal(scaling.extrapolation(128).factors, np.ones(64))
    for vector in (scaling.ntk(128, 4.0), scaling.yarn(10000.0, 128, 4.0, 4096)):
        assert vector.factors.dtype == np.float32 and vector.factors.shape == (64,)
        assert float(vector.factors[0]) == 1 and float(vector.factors[-1]) == pytest.approx(4, rel=1e-6)
        assert (np.diff(vector.factors) >= 0).all()


def test_composition_extends_a_model_that_already_scales():
    # Interpolating a LLaMA-3.1 model by 2 halves each of the frequencies it is served with.
    served, _ = hugging_face(
        "llama3",
        500000.0,
        128,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    theta = frequencies(500000.0, 128)
    own = scaling.llama3(theta, 8.0, 8192)
    both = scaling.compose(own, scaling.position_interpolation(128, 2.0))
    np.testing.assert_allclose(theta / both.factors, served / 2, rtol=RTOL)
    attended = scaling.compose(scaling.yarn(10000.0, 128, 2.0, 4096), scaling.yarn(10000.0, 128, 4.0, 8192))
    expected = (0.1 * np.log(2) + 1) * (0.1 * np.log(4) + 1)
    assert float(attended.attention_factor) == pytest.approx(expected, rel=1e-6)
    per_layer = scaling.compose(own, scaling.explicit(np.full((3, 64), 2.0), 128, layers=3))
    np.testing.assert_array_equal(per_layer.factors, np.broadcast_to(both.factors, (3, 64)))


@pytest.mark.parametrize(
    ("factors", "layers"),
    [
        ([1.0] * 15, None),
        ([1.0] * 17, None),
        ([[1.0] * 16] * 2, None),
        ([[1.0] * 16] * 2, 3),
        ([[1.0] * 16, [1.0] * 15], 2),
        (2.0, None),
        ([], None),
        ([1.0] * 15 + [0.0], None),
        ([1.0] * 15 + [-1.0], None),
        ([1.0] * 15 + [float("nan")], None),
        ([1.0] * 15 + [float("inf")], None),
        ([1.0] * 15 + [1e300], None),
        ([1.0] * 15 + [1e-300], None),
        ([1.0] * 15 + ["two"], None),
        ([1.0] * 15 + [None], None),
    ],
)
def test_explicit_rejects(factors, layers):
    with pytest.raises(InputError, match=r"^rope\.factors"):
        scaling.explicit(factors, 32, layers)


def test_explicit_says_where():
    with pytest.raises(InputError, match=r"rope\.factors\[1, 2\] is -3\.0"):
        scaling.explicit([[1, 1, 1, 1], [1, 1, -3, 1]], 8, layers=2)
    with pytest.raises(InputError, match=r"^rope\.attention_factor is 0"):
        scaling.explicit([1, 1, 1, 1], 8, attention_factor=0)


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: scaling.extrapolation(7), "rope.head_dim"),
        (lambda: scaling.position_interpolation(0, 2), "rope.head_dim"),
        (lambda: scaling.position_interpolation(8, 0.5), "rope.extension"),
        (lambda: scaling.position_interpolation(8, float("nan")), "rope.extension"),
        (lambda: scaling.ntk(2, 2), "rope.head_dim"),
        (lambda: scaling.ntk(8, float("inf")), "rope.extension"),
        (lambda: scaling.yarn(1.0, 8, 2, 128), "rope.base"),
        (lambda: scaling.yarn(1e4, 8, 2, 128, beta_fast=1, beta_slow=32), "rope.beta_slow"),
        (lambda: scaling.yarn(1e4, 8, 2, 0), "context.original"),
        (lambda: scaling.llama3([1.0], 2, 0), "context.original"),
        (lambda: scaling.llama3([1.0], 2, 128, 4, 1), "rope.low_freq_factor"),
        (lambda: scaling.longrope_attention_factor(2, 1), "context.original"),
    ],
)
def test_out_of_range(build, field):
    with pytest.raises(InputError, match=f"^{field} is "):
        build()
