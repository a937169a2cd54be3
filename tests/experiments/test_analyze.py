"""The analysis against the paper's Table 3 and the reference numbers per pair."""

import dataclasses
import importlib
import json

import numpy as np
import pytest

from rope_jax.cli.analyze import analysis, analyze
from rope_jax.commands import analyze as procedure
from rope_jax.commands.reporter import Silent
from rope_jax.errors import InputError
from rope_jax.interop.hf_config import read_config
from rope_jax.rope.methods import METHODS
from tests.rope.golden import golden_case

pytestmark = pytest.mark.usefixtures("optimised")


def load(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.lock()
    return config


@pytest.mark.parametrize(
    ("name", "factor", "table_3"),
    [
        ("llama2_8k", 2, {"pi": 24.08, "dprope_argmin": 6.71}),
        ("llama2_16k", 4, {"pi": 33.67, "yarn": 35.44, "dprope_argmin": 22.93}),
    ],
)
def test_table_3_and_reference_per_pair(tmp_path, name, factor, table_3):
    wanted = analysis(load(name), name)
    drawn = ("extrapolation", "pi", "yarn", "dprope", "dprope_argmin")
    wanted = dataclasses.replace(wanted, methods={method: wanted.methods[method] for method in drawn})
    result = procedure.analyze(wanted, tmp_path, Silent())
    for method, value in table_3.items():
        assert result["disturbance_e3"][method] == pytest.approx(value, abs=0.011)
    case = golden_case(factor)
    for method, key in (("extrapolation", "extrapolation_per_pair"), ("pi", "interpolation_per_pair")):
        # Sums of 360 float32 terms of up to 1.
        np.testing.assert_allclose(result["per_pair"][method], case[key], atol=2e-6)
    chosen = np.flatnonzero(np.array(result["factors"]["dprope_argmin"]) == factor)
    assert chosen.tolist() == case["interpolated_pairs"]


@pytest.mark.parametrize(
    ("mean", "reference", "text"), [(5, 10, "-50%"), (13.1, 10, "+31%"), (44190, 10, "4,419 x"), (1, 0, "-")]
)
def test_means_are_compared_in_words_that_fit(mean, reference, text):
    assert procedure._against(mean, reference) == text


@pytest.mark.slow
def test_every_method_is_tabulated_and_figures_are_drawn(tmp_path, capsys):
    config = load("tiny")
    result = analyze(config, tmp_path, "tiny")
    said = capsys.readouterr().out
    assert json.loads((tmp_path / "analysis.json").read_text()) == result
    assert result["disturbance_e3"].keys() == METHODS.keys() - {"abf", "explicit"}
    for value in result["disturbance_e3"].values():
        assert f" {value:.2f} " in said
    # Every row ends where the head does, whatever the method is called.
    lines = said.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[:1] == ["method"])
    assert {len(line) for line in lines[head : head + 1 + len(METHODS) - 2]} == {len(lines[head])}
    for figure in (1, 3, 6, 7, 8):
        assert (tmp_path / "figures" / f"figure_{figure}.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """The config of a model that scales already, and no weights."""
    folder = tmp_path_factory.mktemp("scaled")
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 8, "vocab_size": 8}
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    described = {"model_type": "llama", "num_hidden_layers": 1, "max_position_embeddings": 512, **sizes}
    (folder / "config.json").write_text(json.dumps(described | {"rope_theta": 5e5, "rope_scaling": scaling}))
    return folder


def config_of(name, **fields):
    """A config with fields named as on the command line, dots as two underscores."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.update_from_flattened_dict({field.replace("__", "."): value for field, value in fields.items()})
    return config


def test_a_model_that_is_named_is_analyzed(scaled):
    for name in ("analyze", "llama2_8k"):
        config = config_of(name, model__path=str(scaled), solve__n_hat=0, context__original=0, context__target=1024)
        if name == "llama2_8k":
            with pytest.raises(InputError, match=r"rope\.base"):
                analysis(config, name, named=True)
            config.update_from_flattened_dict({"rope.base": 5e5, "rope.head_dim": 16})
        found = analysis(config, name, named=True)
        assert (found.geometry.base, found.geometry.head_dim, found.measure.original) == (5e5, 16, 512)
        assert float(found.geometry.own.factors[-1]) == 4
    with pytest.raises(InputError, match="name a model"):
        analyze(config_of("analyze"), scaled, "analyze", reporter=Silent())


@pytest.mark.parametrize("kind", ["folder", "scale.json", "typed"])
def test_explicit_factors(scaled, tmp_path, kind):
    """A model that scales by 4 extended by its own vector stays as it is; a list continues top."""
    own = read_config(scaled).rope
    given, expected, attention = str(scaled), np.asarray(own.factors), float(own.attention_factor)
    if kind == "scale.json":
        expected, attention = 2 * expected, 1.25
        record = {"factors": expected.tolist(), "attention_factor": attention, "base": 5e5, "disturbance": []}
        (tmp_path / "scale.json").write_text(json.dumps(record))
        given = str(tmp_path / "scale.json")
    elif kind == "typed":
        given, expected = json.dumps([2.0] * 8), 2 * expected
    found = analysis(config_of("analyze", model__path=str(scaled), rope__factors=given), "a", named=True)
    scale = found.methods["explicit"].scale(found.geometry, found.measure)
    np.testing.assert_array_equal(scale.factors, expected)
    assert float(scale.attention_factor) == np.float32(attention)


@pytest.mark.slow
def test_sweep(tmp_path):
    found = procedure.sweep(analysis(load("llama2_8k"), "llama2_8k"), tmp_path, Silent())
    assert json.loads((tmp_path / "sweep.json").read_text()) == found
    assert (tmp_path / "figures/sweep.png").exists()
    dimensions = dict(zip(found["interpolated dimensions"]["x"], found["interpolated dimensions"]["curves"]["dprope"]))
    # All dimensions interpolated is position interpolation; 80 is the paper's choice.
    assert dimensions[128] == pytest.approx(24.08, abs=0.011)
    assert dimensions[80] == pytest.approx(6.737, abs=0.002)
    assert found["extended context"]["x"][-1] == 2**20
