"""Methods by name against the paper's Table 3 and transformers' own frequencies."""

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rope_jax.errors import InputError
from rope_jax.report.styles import COLOURS, NAMES
from rope_jax.rope import scaling
from rope_jax.rope.embedding import frequencies, identity
from rope_jax.rope.methods import METHODS, Extension, solve_method


def llama2(target, **fields):
    return Extension(base=10000.0, head_dim=128, own=identity(128), original=4096, target=target, **fields)


@pytest.mark.parametrize(
    ("target", "method", "table_3"),
    [
        (8192, "pi", 24.08),
        (8192, "dprope_argmin", 6.71),
        (16384, "pi", 33.67),
        (16384, "yarn", 35.44),
        (16384, "dprope_argmin", 22.92),
    ],
)
def test_table_3(target, method, table_3):
    # The table has two decimals, not all of them rounded to nearest.
    assert 1e3 * float(np.mean(solve_method(method, llama2(target)).disturbance)) == pytest.approx(table_3, abs=0.011)


@pytest.mark.parametrize(("target", "n_hat"), [(8192, 80), (16384, 64)])
def test_dprope_interpolates_the_dimensions_asked_for(target, n_hat):
    solution = solve_method("dprope", llama2(target, n_hat=n_hat))
    assert solution.interpolated_dimensions == n_hat
    assert set(np.unique(solution.scale.factors)) == {1.0, target / 4096}


@pytest.mark.parametrize("target", [8192, 16384])
def test_exact_angles_give_the_float64_table(target):
    # In float64 PI is 24.06 / 33.62, a few hundredths from the table's float32.
    expected = {8192: 24.06, 16384: 33.62}[target]
    measured = solve_method("pi", llama2(target, angles="exact")).disturbance
    assert 1e3 * float(np.mean(measured)) == pytest.approx(expected, abs=0.011)


def test_exact_angles_reach_ten_million_tokens():
    extension = llama2(10_000_000, angles="exact")
    solution = solve_method("dprope_robust", extension)
    assert np.flatnonzero(solution.selection.winner).tolist() == list(range(46, 64))
    with pytest.raises(InputError, match=r"context\.target is 33554432"):
        solve_method("pi", llama2(2**25))
    assert solve_method("pi", llama2(2**25, angles="exact")).disturbance.shape == (64,)


@pytest.mark.parametrize(("target", "form", "table_3"), [(8192, "yarn_paper", 23.3), (16384, "yarn_paper", 33.4)])
def test_the_papers_yarn_is_not_table_3s(target, form, table_3):
    assert 1e3 * float(np.mean(solve_method(form, llama2(target)).disturbance)) == pytest.approx(table_3, abs=0.1)


def test_every_method_has_a_name_and_a_colour():
    assert set(METHODS) <= set(NAMES) and len(set(COLOURS.values())) == len(COLOURS)


def test_dprope_without_n_hat_follows_the_threshold():
    chosen = [solve_method("dprope", llama2(8192, threshold=t)).interpolated_dimensions for t in (0.0, 0.01, 10.0)]
    assert chosen[0] == 94
    assert chosen[0] > chosen[1] > chosen[2] == 0


@pytest.mark.parametrize("method", ["pi", "yarn"])
def test_frequencies_are_transformers_own(method):
    kind = {"pi": "linear", "yarn": "yarn"}[method]
    parameters = {"rope_type": kind, "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 4096}
    config = transformers.LlamaConfig(max_position_embeddings=16384, rope_parameters=parameters)
    expected, attention_factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    scale = solve_method(method, llama2(16384)).scale
    # One float32 rounding of the factor and one of the quotient.
    np.testing.assert_allclose(frequencies(10000.0, 128) / scale.factors, expected, rtol=3e-7)
    assert float(scale.attention_factor) == pytest.approx(attention_factor, rel=1e-6)


def test_a_scaled_model_is_extended_from_its_own_frequencies():
    """Position interpolation by 2 and again by 2 is position interpolation by 4."""
    own = scaling.position_interpolation(128, 2.0)
    twice = Extension(base=10000.0, head_dim=128, own=own, original=8192, target=16384)
    np.testing.assert_allclose(solve_method("pi", twice).scale.factors, 4.0)
    # Exactly halved frequencies over twice the length visit the same angles, at odd positions those between them.
    once = solve_method("pi", llama2(8192)).disturbance
    assert np.mean(solve_method("pi", twice).disturbance) < np.mean(once)


def test_explicit_factors_per_layer():
    rows = np.stack([np.full(64, 1.0), np.full(64, 2.0)])
    extension = llama2(8192, layers=2, factors=tuple(map(tuple, rows)))
    solution = solve_method("explicit", extension)
    np.testing.assert_array_equal(solution.scale.factors, rows)
    ends = [solve_method(method, llama2(8192)).disturbance for method in ("extrapolation", "pi")]
    np.testing.assert_allclose(solution.disturbance, np.mean(ends, axis=0), rtol=1e-6)


def test_every_name_is_solved_or_refused():
    for method in METHODS:
        if method != "explicit":
            assert solve_method(method, llama2(8192, new_base=500000.0)).disturbance.shape == (64,)
    with pytest.raises(InputError, match=r"rope\.factors"):
        solve_method("explicit", llama2(8192))
    with pytest.raises(InputError, match=r"rope\.new_base is 0"):
        solve_method("abf", llama2(8192))
    with pytest.raises(InputError, match=r"rope\.method is 'linear': use one of extrapolation, pi"):
        solve_method("linear", llama2(8192))
    with pytest.raises(InputError, match=r"rope\.factors"):
        llama2(8192, layers=2, factors=(1.0, 2.0)).check(("explicit",))
