"""Closed-form scale vectors against transformers' own initialisers."""

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rope_jax.errors import InputError
from rope_jax.interop.factor_files import read_factors
from rope_jax.rope.embedding import ScaleVector, frequencies, identity
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods.by_parts import Yarn, YarnPaper, YarnResonance, YarnWavelength, llama3, resonance, yarn
from rope_jax.rope.methods.explicit import Explicit, explicit, longrope_attention_factor
from rope_jax.rope.methods.interpolation import (
    BaseChange,
    CriticalBase,
    DynamicNTK,
    PartialRope,
    ntk,
    position_interpolation,
)
from rope_jax.rope.relative import RelativeScale, compose
from tests.rope.golden import GOLDEN

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


def geometry(base, head_dim):
    return Geometry(base, head_dim, identity(head_dim))


def assert_serves(vector, base, head_dim, expected):
    frequency, attention_factor = expected
    np.testing.assert_allclose(frequencies(base, head_dim) / vector.factors, frequency, rtol=RTOL)
    assert float(vector.attention_factor) == pytest.approx(attention_factor, rel=1e-6)


@pytest.mark.parametrize(("base", "head_dim"), [(10000.0, 128), (500000.0, 64), (10000.0, 8)])
@pytest.mark.parametrize("extension", [1.0, 2.0, 4.0, 32.0])
def test_position_interpolation(base, head_dim, extension):
    expected = hugging_face("linear", base, head_dim, factor=extension)
    assert_serves(position_interpolation(head_dim, extension), base, head_dim, expected)


@pytest.mark.parametrize(("base", "head_dim"), [(10000.0, 128), (500000.0, 64), (10000.0, 8)])
@pytest.mark.parametrize("extension", [2.0, 4.0])
def test_ntk(base, head_dim, extension):
    # Dynamic NTK extends by s l / L - (s - 1) at length l, which is s where l = L (2 s - 1) / s.
    original = 1024
    length = int(original * (2 * extension - 1) / extension)
    expected = hugging_face("dynamic", base, head_dim, seq_len=length, context=original, factor=extension)
    assert_serves(ntk(head_dim, extension), base, head_dim, expected)


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
    vector = yarn(base, head_dim, options.pop("factor"), original, **options)
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
    vector = llama3(frequencies(base, head_dim), extension, 8192, low, high)
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
        attention_factor = longrope_attention_factor(extension, 4096)
        vector = explicit(factors.tolist(), 32, attention_factor=attention_factor)
        assert_serves(vector, 10000.0, 32, expected)


def test_longrope_published_factors():
    rows = np.loadtxt(GOLDEN / "longrope_ft_la2_128k.csv", delimiter=",")
    vector = explicit(rows, 128, layers=32)
    assert vector.factors.shape == (32, 64) and float(vector.factors.min()) >= 1


@pytest.mark.parametrize("target", [1500, 2048, 4096])
def test_dynamic_ntk(target):
    expected = hugging_face("dynamic", 10000.0, 64, seq_len=target, context=1024, factor=target / 1024)
    vector = DynamicNTK().relative(geometry(10000.0, 64), Measure(1024, target))
    assert_serves(vector, 10000.0, 64, expected)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.75, 1.0])
def test_partial(share):
    served, attention_factor = hugging_face("proportional", 10000.0, 64, partial_rotary_factor=share)
    vector = PartialRope(share).relative(geometry(10000.0, 64), Measure(128, 256))
    factors = np.asarray(vector.factors, np.float64)
    np.testing.assert_array_equal(factors == 1, served > 0)
    # What stands still turns by less than float32 can see, at any position.
    assert (2**24 * frequencies(10000.0, 64) / factors)[served == 0].max(initial=0) < 2.0**-30
    assert float(vector.attention_factor) == attention_factor == 1 and np.isfinite(factors).all()


@pytest.mark.parametrize(("base", "head_dim"), [(10000.0, 128), (500000.0, 64)])
def test_base_change(base, head_dim):
    expected = hugging_face("default", 5e6, head_dim) if "default" in ROPE_INIT_FUNCTIONS else None
    served = expected[0] if expected else 5e6 ** -(np.arange(0, head_dim, 2) / head_dim)
    vector = BaseChange(5e6).relative(geometry(base, head_dim), Measure(128, 256))
    np.testing.assert_allclose(frequencies(base, head_dim) / vector.factors, served, rtol=RTOL)


def test_critical_base():
    # The pair that just completes a period in 4096 tokens completes one in the target under the new base.
    vector = CriticalBase().relative(geometry(10000.0, 128), Measure(4096, 16384))
    base = 10000.0 * float(vector.factors[-1]) ** (128 / 126)
    critical = np.log(4096 / (2 * np.pi)) / np.log(10000.0)  # share of the dimensions
    assert 16384 * base**-critical == pytest.approx(2 * np.pi, rel=1e-5)


@pytest.mark.parametrize("extension", [2.0, 4.0])
def test_yarn_forms_in_float64(extension):
    theta = 10000.0 ** -(np.arange(0, 128, 2) / 128)
    turns = 4096 * theta / (2 * np.pi)
    keep = np.clip((turns - 1) / 31, 0, 1)
    setting = geometry(10000.0, 128), Measure(4096, int(4096 * extension))
    paper = YarnPaper().relative(*setting)
    np.testing.assert_allclose(theta / paper.factors, theta * (keep + (1 - keep) / extension), rtol=RTOL)
    assert float(paper.attention_factor) == pytest.approx(0.1 * np.log(extension) + 1)
    # Both of the served forms mix with one ramp, one mixes frequencies and the other wavelengths.
    served, wavelength = yarn(10000.0, 128, extension, 4096), YarnWavelength().relative(*setting)
    ramp = (1 / np.asarray(served.factors, np.float64) - 1 / extension) / (1 - 1 / extension)
    np.testing.assert_allclose(wavelength.factors, (1 - ramp) * extension + ramp, rtol=1e-5)


@pytest.mark.parametrize("method", [Yarn, YarnWavelength, YarnResonance, CriticalBase])
def test_parts_of_a_model_that_scales_already(method):
    """LLaMA-3.1: the slow pairs, which complete no period within its context, are interpolated by the whole factor."""
    own = compose(identity(128), llama3(frequencies(500000.0, 128), 8.0, 8192))
    scaled = Geometry(500000.0, 128, own)
    periods = 131072 * scaled.theta().astype(np.float64) / (2 * np.pi)
    factors = method().relative(scaled, Measure(131072, 262144)).factors.astype(np.float64)
    assert periods[periods < 0.9].max() == pytest.approx(0.88, abs=0.005)
    # Resonance rounds wavelengths of 1e5 tokens to whole ones.
    assert factors[periods < 0.9].min() >= 2 * (1 - 1e-5)


@pytest.mark.parametrize("method", [Yarn, YarnWavelength, CriticalBase])
def test_another_base_is_a_scaling_too(method):
    """base 10000 scaled to 500000 has the frequencies of base 500000, and gets its extension."""
    measure, ratio = Measure(8192, 32768), 50.0 ** (np.arange(0, 128, 2) / 128)
    scaled = method().scale(Geometry(10000.0, 128, ScaleVector.create(ratio)), measure)
    plain = method().scale(geometry(500000.0, 128), measure)
    # The ends of YaRN's ramp are whole pairs, of another base each.
    tolerance = RTOL if method is CriticalBase else 0.12
    np.testing.assert_allclose(np.asarray(scaled.factors) / ratio, np.asarray(plain.factors), rtol=tolerance)


def test_resonance_rounds_wavelengths():
    theta = frequencies(10000.0, 128).astype(np.float64)
    for vector in (RelativeScale.create(np.ones(64)), yarn(10000.0, 128, 4.0, 4096)):
        rounded = resonance(theta, vector)
        wavelengths = 2 * np.pi * np.asarray(rounded.factors, np.float64) / theta
        np.testing.assert_allclose(wavelengths, np.round(2 * np.pi * np.asarray(vector.factors) / theta), rtol=1e-6)
        assert float(rounded.attention_factor) == float(vector.attention_factor)


def test_vectors_from_files(tmp_path):
    rows = read_factors(GOLDEN / "longrope_ft_la2_128k.csv").factors
    assert np.shape(rows) == (64,)  # 32 equal rows are one vector
    (tmp_path / "layers.csv").write_text("1,2\n1,3\n")
    assert read_factors(tmp_path / "layers.csv") == Explicit(((1.0, 2.0), (1.0, 3.0)))
    (tmp_path / "list.json").write_text("[1, 2.5]")
    (tmp_path / "solved.json").write_text('{"factors": [[1, 2.5], [1, 4]], "attention_factor": 1.2, "base": 5e5}')
    assert read_factors(tmp_path / "list.json") == Explicit((1, 2.5))
    assert read_factors(tmp_path / "solved.json") == Explicit(((1, 2.5), (1, 4)), 1.2, whole=True, base=5e5)
    for name, text in (
        ("a.csv", "1,x"),
        ("b.json", "{"),
        ("c.json", "3"),
        ("d.json", "[]"),
        ("e.csv", ""),
        ("f.json", '["1", "2"]'),
        ("g.json", "[true, 2]"),
        ("h.json", "[[1, 2], 3]"),
        ("i.json", "[" * 500 + "]" * 500),
        ("j.csv", '"' + "1" * 200_000),
        ("k.json", '{"factors": {"pi": [1, 2]}}'),
        ("l.json", '{"factors": [1, 2], "attention_factor": "1"}'),
        ("m.json", "[1, 2]" + " " * (33 << 20)),
        ("n.json", '{"factors": [[1, 2]], "attention_factor": [[1], [2, 3]]}'),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=name):
            read_factors(tmp_path / name)
    with pytest.raises(InputError, match=r"absent\.json"):
        read_factors(tmp_path / "absent.json")


@pytest.mark.parametrize("base", [0.0, 10000.0, 500000.0])
def test_a_whole_vector_replaces_a_scaling(base):
    own = ScaleVector.create(np.full(4, 8.0), 1.069)
    given = np.asarray([1.0, 2.0, 4.0, 16.0])
    found = Explicit(tuple(given), 1.1, whole=True, base=base).scale(Geometry(10000.0, 8, own), Measure(128, 256))
    served = (base or 10000.0) ** -(np.arange(0, 8, 2) / 8) / given
    np.testing.assert_allclose(frequencies(10000.0, 8) / np.asarray(found.factors), served, rtol=RTOL)
    assert float(found.attention_factor) == np.float32(1.1)
    # Other factors go on top of what the model has.
    more = Explicit(tuple(given), 1.1).scale(Geometry(10000.0, 8, own), Measure(128, 256))
    np.testing.assert_allclose(more.factors, 8 * given)
    assert float(more.attention_factor) == pytest.approx(1.1 * 1.069)


def test_ends():
    for vector in (ntk(128, 4.0), yarn(10000.0, 128, 4.0, 4096)):
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
    own = compose(identity(128), llama3(theta, 8.0, 8192))
    both = compose(own, position_interpolation(128, 2.0))
    np.testing.assert_allclose(theta / both.factors, served / 2, rtol=RTOL)
    attended = compose(compose(identity(128), yarn(10000.0, 128, 2.0, 4096)), yarn(10000.0, 128, 4.0, 8192))
    assert isinstance(attended, ScaleVector)
    expected = (0.1 * np.log(2) + 1) * (0.1 * np.log(4) + 1)
    assert float(attended.attention_factor) == pytest.approx(expected, rel=1e-6)
    per_layer = compose(own, explicit(np.full((3, 64), 2.0), 128, layers=3))
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
    with pytest.raises(InputError) as error:
        explicit(factors, 32, layers)
    assert error.value.field == "factors"


def test_explicit_says_where():
    with pytest.raises(InputError, match=r"-3\.0 at \[1, 2\]"):
        explicit([[1, 1, 1, 1], [1, 1, -3, 1]], 8, layers=2)


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: position_interpolation(0, 2), "head_dim"),
        (lambda: position_interpolation(8, 0.5), "extension"),
        (lambda: position_interpolation(8, float("nan")), "extension"),
        (lambda: ntk(2, 2), "head_dim"),
        (lambda: ntk(8, float("inf")), "extension"),
        (lambda: yarn(1.0, 8, 2, 128), "base"),
        (lambda: yarn(1e4, 8, 2, 128, beta_fast=1, beta_slow=32), "beta_slow"),
        (lambda: yarn(1e4, 8, 2, 0), "original"),
        (lambda: llama3([1.0], 2, 0), "original"),
        (lambda: llama3([1.0], 2, 128, 4, 1), "low_frequency_factor"),
        (lambda: longrope_attention_factor(2, 1), "original"),
        (lambda: explicit([1, 1, 1, 1], 8, attention_factor=0), "attention_factor"),
        (lambda: BaseChange(5e3).relative(geometry(1e4, 8), Measure(8, 16)), "new_base"),
        (lambda: CriticalBase().relative(geometry(1e4, 8), Measure(4, 8)), "original"),
    ],
)
def test_out_of_range(build, field):
    with pytest.raises(InputError) as error:
        build()
    assert error.value.field == field
