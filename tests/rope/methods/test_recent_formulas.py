"""The vectors of 2025 and 2026 against their published formulas, in float64 and in another form."""

import math

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rope_jax.errors import InputError
from rope_jax.rope.embedding import ScaleVector, frequencies, identity
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods import METHODS
from rope_jax.rope.methods.by_parts import llama3
from rope_jax.rope.relative import compose

# Base, head dimension, both contexts: LLaMA2, LLaMA-3 and SmolLM2.
MODELS = [(1e4, 128, 4096, 16384), (5e5, 128, 8192, 32768), (1e5, 64, 8192, 16384)]


@pytest.fixture(params=MODELS, ids=["llama2", "llama3", "smollm2"])
def model(request):
    return request.param


def served(method, model, **parameters):
    """Frequencies that a method serves, float64, and its attention factor."""
    base, head_dim, original, target = model
    geometry = Geometry(base, head_dim, identity(head_dim))
    scale = METHODS[method](**parameters)(geometry, Measure(original, target)).scale
    plain = base ** -(np.arange(0, head_dim, 2) / head_dim)
    return plain / np.asarray(scale.factors, np.float64), float(scale.attention_factor)


def theta(base, head_dim):
    return [math.exp(-2 * i / head_dim * math.log(base)) for i in range(head_dim // 2)]


def by_radices(model, radix):
    """Frequencies divided by the product of the radix of every faster pair of the middle (arXiv 2601.22181, Eq. 13)."""
    base, head_dim, original, target = model
    periods = [original * rate / (2 * math.pi) for rate in theta(base, head_dim)]
    first = max(i for i, count in enumerate(periods) if count > 32)
    last = min(i for i, count in enumerate(periods) if count < 1)
    divisor, found = 1.0, []
    for i, rate in enumerate(theta(base, head_dim)):
        found.append(rate / divisor)
        if first <= i < last:
            divisor *= (target / original) ** radix(i - first, last - first)
    assert divisor == pytest.approx(target / original)
    return found


def uniform(step, width):
    return 1 / width


def progressive(step, width):
    return 2 * (1 + step) / ((1 + width) * width)


def falling(step, width):
    # TailSpline's exponent is a sum of these.
    return (width * (width + 1) - step * (step + 1)) / sum(width * (width + 1) - q * (q + 1) for q in range(width))


@pytest.mark.parametrize(
    ("method", "radix"), [("mrrope_uni", uniform), ("mrrope_pro", progressive), ("tailspline", falling)]
)
def test_mixed_radices(model, method, radix):
    frequency, attention_factor = served(method, model)
    np.testing.assert_allclose(frequency, by_radices(model, radix), rtol=1e-6)
    assert attention_factor == pytest.approx(1 + math.log(model[3] / model[2]) / 10, rel=1e-6)


@pytest.mark.parametrize("raised", [0.0, 1e7])
@pytest.mark.parametrize("clipped", [0, 7])
def test_cope_and_hard_cut(model, raised, clipped):
    base, head_dim, *_ = model
    rates = theta(raised or base, head_dim)
    count = clipped or {64: 20, 32: 10}[len(rates)]
    tapered = [
        rate * math.cos(math.pi * j / (count - 1) / 2) ** 2 if j >= 0 else rate
        for j, rate in enumerate(rates, start=count - len(rates))
    ]
    frequency, attention_factor = served("cope", model, clipped=clipped, new_base=raised)
    # The last one stands still: a factor of 2^60 is as good as none.
    np.testing.assert_allclose(frequency, tapered, rtol=1e-6, atol=1e-15)
    assert attention_factor == 1
    frequency, attention_factor = served("hard_cut", model, clipped=clipped, new_base=raised)
    cut = rates[:-count] + [0.0] * count
    np.testing.assert_allclose(frequency, cut, rtol=1e-6, atol=1e-15)
    assert attention_factor == 1


@pytest.mark.parametrize(("critical", "stretch"), [(0, 1.0), (20, 1.5)])
def test_longrope2(model, critical, stretch):
    base, head_dim, original, target = model
    pair = critical or math.ceil(head_dim / 2 * math.log(original / (2 * math.pi), base))
    factor = stretch * target / original
    # The base under which the critical pair is as slow as its factor makes it (its algorithm 2, line 7).
    raised = (factor * base ** (2 * pair / head_dim)) ** (head_dim / (2 * pair))
    expected = theta(raised, head_dim)[:pair] + [rate / factor for rate in theta(base, head_dim)[pair:]]
    frequency, attention_factor = served("longrope2", model, critical_pair=critical, stretch=stretch)
    np.testing.assert_allclose(frequency, expected, rtol=1e-6)
    assert attention_factor == pytest.approx(math.sqrt(math.log(target) / math.log(original)), rel=1e-6)


def test_nope(model):
    assert served("nope", model)[0].max() < 1e-15


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_proportional(model, share):
    base, head_dim, original, target = model
    parameters = {"rope_type": "proportional", "rope_theta": base, "partial_rotary_factor": share}
    parameters["factor"] = target / original
    config = LlamaConfig(hidden_size=head_dim, num_attention_heads=1, rope_parameters=parameters)
    expected, attention_factor = ROPE_INIT_FUNCTIONS["proportional"](config, device="cpu")
    frequency, found = served("proportional", model, turning=share)
    np.testing.assert_allclose(frequency, expected, rtol=1e-6, atol=1e-15)
    assert found == attention_factor == 1


@pytest.mark.parametrize("method", ["mrrope_uni", "mrrope_pro", "tailspline", "longrope2"])
def test_ramps_follow_the_frequencies_of_a_model_that_already_scales(method):
    # LLaMA-3.1, extended from 128k: whether a pair is kept follows from its own periods within 128k tokens.
    own = compose(identity(128), llama3(frequencies(5e5, 128), 8.0, 8192))
    geometry, measure = Geometry(5e5, 128, own), Measure(131072, 262144)
    factors = METHODS[method]().relative(geometry, measure).factors
    periods = measure.original * geometry.theta() / (2 * np.pi)
    if method != "longrope2":  # spreads over all pairs before the critical one
        np.testing.assert_array_equal(factors[periods > 40], 1)
    np.testing.assert_allclose(factors[periods < 0.9], 2, rtol=1e-6)
    assert (np.diff(factors) >= 0).all()
    if method == "mrrope_uni":
        # Between the ends, the exponent is linear in the logarithm of the pair's own periods.
        step = 2 * math.log(5e5) / 128
        fast, slow = (measure.original / (2 * math.pi * periods) for periods in (32, 1))
        low, high = math.floor(math.log(fast) / step), math.ceil(math.log(slow) / step)
        exponent = np.clip((-np.log(geometry.theta().astype(float)) / step - low) / (high - low), 0, 1)
        np.testing.assert_allclose(factors, 2**exponent, rtol=1e-6)


def test_the_slowest_pairs_are_those_of_the_model():
    own = ScaleVector.create([1.0, 1e3, 1.0, 1.0])  # pair 1 is slower than pair 3
    geometry, measure = Geometry(1e4, 8, own), Measure(128, 256)
    for method in ("cope", "hard_cut"):
        factors = METHODS[method](clipped=2).relative(geometry, measure).factors
        assert np.argmax(factors) == 1 if method == "cope" else set(np.flatnonzero(factors > 1)) == {1, 3}


def test_a_pair_that_stands_still_is_not_slowed_further():
    geometry, measure = Geometry(1e4, 8, identity(8)), Measure(128, 256)
    still = METHODS["nope"]()(geometry, measure).scale
    for method in ("nope", "pi", "cope"):
        solution = METHODS[method]()(Geometry(1e4, 8, still), measure)
        np.testing.assert_array_equal(solution.scale.factors, still.factors)
        assert solution.interpolated_dimensions == 0


@pytest.mark.parametrize(
    ("method", "parameters", "field"),
    [
        ("cope", {"clipped": 65}, "clipped"),
        ("hard_cut", {"clipped": -1}, "clipped"),
        ("cope", {"new_base": 5e3}, "new_base"),
        ("longrope2", {"critical_pair": 64}, "critical_pair"),
        ("longrope2", {"stretch": 0.5}, "stretch"),
        ("proportional", {"turning": 1.5}, "turning"),
    ],
)
def test_unusable_parameters(method, parameters, field):
    with pytest.raises(InputError) as error:
        METHODS[method](**parameters).check(Geometry(1e4, 128, identity(128)), Measure(4096, 8192))
    assert error.value.field == field and f"`{field}`" in str(error.value)
