"""The configs that ship: the paper's recipe, and that each builds what the library takes."""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import defaults
from rope_jax.cli import build
from rope_jax.commands.cards import described
from rope_jax.commands.extend import check_exportable
from rope_jax.commands.plan import PLANNED
from rope_jax.commands.source import Source
from rope_jax.data.mixed import Mix
from rope_jax.data.positions import Skips
from rope_jax.errors import InputError
from rope_jax.interop.hf_config import SourceConfig
from rope_jax.model.backends import Device, check_backend, described_backend
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import abstract_params
from rope_jax.rope.embedding import identity
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods import METHODS
from rope_jax.rope.methods.adjusted import Adjusted
from rope_jax.sharding import make_mesh
from rope_jax.training.update import Training

H100 = Device("gpu", "H100", 9.0)
LLAMA2_7B = LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128)
LLAMA2_13B = LlamaConfig(32000, 5120, 13824, 40, 40, 40, 128)

PAPER = [
    ("llama2_8k", LLAMA2_7B, 8192, 80, 1000),
    ("llama2_16k", LLAMA2_7B, 16384, 64, 500),
    ("llama2_13b_8k", LLAMA2_13B, 8192, 80, 1000),
    ("llama2_13b_16k", LLAMA2_13B, 16384, 64, 500),
]


def load(name):
    return importlib.import_module(f"configs.{name}").get_config()


def source_of(config, model, device=None):
    known = SourceConfig(model, identity(model.head_dim), provenance=None, carried={})
    return Source("model", Path("model"), known, build.compute(config).of(model, device))


@pytest.mark.parametrize(("name", "model", "target", "n_hat", "steps"), PAPER)
def test_paper_recipe(name, model, target, n_hat, steps):
    """arXiv 2410.01490, section 4.1."""
    recipe = build.recipe(load(name), source_of(load(name), model))
    measure = recipe.measure
    assert (measure.original, measure.target, measure.intervals) == (4096, target, 360)
    assert recipe.exported == "dprope"
    assert recipe.methods["dprope"](recipe.geometry, measure).interpolated_dimensions == n_hat
    tuning = recipe.tuning["dprope"]
    assert (tuning.optimizer.steps, tuning.global_batch, tuning.length) == (steps, 64, target)
    o = tuning.optimizer
    assert (o.learning_rate, o.schedule, o.warmup_steps) == (2e-5, "constant", 0)
    assert (o.b1, o.b2, o.weight_decay, o.clip_norm) == (0.9, 0.999, 0, 0)


@pytest.mark.parametrize(("name", "model"), [(name, model) for name, model, *_ in PAPER])
def test_shapes_to_plan_with(name, model):
    source = build.plan_source(load(name))
    planned = source.model
    assert planned == build.compute(load(name)).of(model, PLANNED)
    assert (planned.dtype, planned.param_dtype, planned.remat) == ("bfloat16", "float32", "full")
    np.testing.assert_array_equal(source.own.factors, 1)


@pytest.mark.parametrize(
    ("device", "context", "window", "head_dim", "said"),
    [
        (Device("cpu", "cpu"), 1, None, 16, "'cpu'"),
        (H100, 1, None, 64, "'cudnn'; rows of several documents by 'pallas'"),
        (H100, 1, 4096, 64, "'cudnn'; rows of several documents by 'cpu' instead of 'pallas', which has no sliding"),
        (H100, 1, None, 256, "'cudnn'; rows of several documents by 'cpu' instead of 'pallas', which takes"),
        (H100, 2, None, 64, "'cpu' in training, where sequences are cut over devices; else 'cudnn'; rows of"),
        (H100, 1, None, 100, "'pallas' instead of 'cudnn', which takes multiples of 8 from 8 to 256 as `head_dim`"),
        (Device("gpu", "V100", 7.0), 1, None, 64, "'cpu' instead of 'cudnn', which needs a GPU of NVIDIA, of compute"),
        (Device("gpu", "MI300X"), 1, None, 64, "'cpu' instead of 'cudnn', which needs a GPU of NVIDIA"),
        (Device("tpu", "TPU v5"), 1, 4096, 64, "'splash'"),
        (Device("tpu", "TPU v5"), 2, None, 64, "'splash'"),
        (Device("tpu", "TPU v5"), 2, 4096, 64, "'cpu' instead of 'splash', which has no sliding window"),
    ],
)
def test_attention_that_auto_takes(device, context, window, head_dim, said):
    config = load("llama2_8k")
    assert config.model.attention == "auto"
    config.mesh.context = context
    model = LlamaConfig(1000, 64, 128, 2, 4, 2, head_dim, sliding_window=window, architecture="mistral")
    found = build.compute(config).of(model, device)
    check_backend(found, device, ring=context > 1)
    assert described_backend(found, device, ring=context > 1).startswith(said)


def test_attention_in_float32_on_a_gpu():
    config = load("llama2_8k")
    config.model.dtype = "float32"
    found = build.compute(config).of(LLAMA2_7B, H100)
    said = "'cpu' instead of 'cudnn', which computes in 16 bits: set `dtype` to 'bfloat16'"
    assert found.attention == "cpu" and described_backend(found, H100) == said


@pytest.mark.parametrize(("name", "model"), [(name, model) for name, model, *_ in PAPER[::2]])
def test_full_size_step_has_consistent_shapes(name, model):
    """The real update on abstract arrays: every shape and dtype of LLaMA2, no memory."""
    config = load(name)
    source = source_of(config, model)
    params = abstract_params(source.model)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == {4096: 6_738_415_616, 5120: 13_015_864_320}[model.hidden_size]  # as published
    tuning = build.tuning(config, build.measure(config, source.model.context))
    training = Training(source.model, tuning, make_mesh(1, 1, 1, jax.devices()[:1]))
    before = training.abstract_state(source.own)
    after, metrics = training.trace(source.own).out_info
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), before)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(after.params))
    assert metrics["loss"].shape == ()


def test_local_takes_everything_from_the_model():
    config = load("local")
    model = LlamaConfig(1000, 64, 128, 2, 4, 2, 16, rope_base=500000.0, context=2048)
    recipe = build.recipe(config, source_of(config, model))
    geometry, measure = recipe.geometry, recipe.measure
    assert (geometry.base, geometry.head_dim, measure.original, measure.target) == (500000.0, 16, 2048, 4096)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_any_architecture_can_be_trained_from_nothing(architecture):
    config = load("tiny")
    config.pretrain.architecture = architecture
    model = build.source(config, Path("nowhere")).model
    assert model.architecture == architecture
    attention = abstract_params(model)["layers"]["attention"]
    assert ("q_norm" in attention) == (architecture == "qwen3")
    assert ("bias" in attention["q"]) == (architecture == "qwen2")


def test_the_demo_learns_recall_in_ids_that_no_text_has():
    config = load("tiny")
    source = build.source(config, Path("nowhere"))
    symbols = build.tokenizer(config, source).symbols
    assert symbols and symbols.first == 258 and source.model.vocab_size == 258 + symbols.count
    assert build.pretraining(config).recall == config.pretrain.recall > 0
    config.pretrain.recall = 0.0
    plain = build.source(config, Path("nowhere"))
    assert plain.model.vocab_size == 258 and build.tokenizer(config, plain).symbols is None


def test_explicit_factors_come_from_a_file(tmp_path):
    config = load("local")
    config.compare = ()
    config.rope.method = "explicit"
    config.rope.factors = str(tmp_path / "factors.json")
    source = source_of(config, LlamaConfig(1000, 64, 128, 2, 4, 2, 16))
    (tmp_path / "factors.json").write_text("[1, 1, 1, 1, 1.5, 2, 2, 2]")
    recipe = build.recipe(config, source)
    solution = recipe.methods["explicit"](recipe.geometry, recipe.measure)
    np.testing.assert_array_equal(solution.scale.factors, [1, 1, 1, 1, 1.5, 2, 2, 2])
    config.rope.attention_factor, config.rope.taper = "1.05", 1
    adjusted = build.recipe(config, source).methods["explicit"](recipe.geometry, recipe.measure)
    assert float(adjusted.scale.attention_factor) == pytest.approx(1.05)
    # A quarter of each neighbour, in logarithms.
    np.testing.assert_allclose(adjusted.scale.factors[4], 1.5**0.5 * 2**0.25, rtol=1e-6)
    config.rope.attention_factor, config.rope.taper = "", 0
    config.rope.layers = (1,)
    with pytest.raises(InputError, match="a vector per layer, which no stock") as caught:
        check_exportable(build.recipe(config, source))
    assert caught.value.field == "layers"
    config.rope.layers = ()
    config.solve.by_layer = True
    with pytest.raises(InputError, match="is empty: name a file of them") as caught:
        build.solved_method(config, "dprope")
    assert caught.value.field == "solve.by_layer"
    config.solve.by_layer = False
    config.compare = ("yarn@1.03", "dprope@longrope", "dprope_t2@1.03")
    assert build.method_names(config, {})[1:] == config.compare
    named = build.recipe(config, source).methods["yarn@1.03"](recipe.geometry, recipe.measure)
    assert float(named.scale.attention_factor) == pytest.approx(1.03)
    named = build.recipe(config, source).methods["dprope_t2@1.03"]
    assert named == Adjusted(build.solved_method(config, "dprope"), "1.03", taper=2)
    config.compare = ("two_term_w300", "dprope_n4_t2@1.03")
    weighed, interpolated = (build.recipe(config, source).methods[name] for name in config.compare)
    assert weighed == METHODS["two_term"](unseen_weight=300)
    assert interpolated == Adjusted(METHODS["dprope"](n_hat=4), "1.03", taper=2)
    config.compare = ("yarn_w300",)
    with pytest.raises(InputError, match="'yarn', which has no unseen_weight"):
        build.method_names(config, {})
    config.compare = ()
    (tmp_path / "factors.json").write_text("[1, 1, 1]")
    with pytest.raises(InputError, match=r"shape \[3\]") as caught:
        build.recipe(config, source)
    assert caught.value.field == "factors"
    (tmp_path / "factors.json").write_text('{"factors": [1, 1, 1, 1, 1, 1, 1, 1], "attention_factor": 1e9}')
    with pytest.raises(InputError, match="attention_factor") as caught:
        build.recipe(config, source)
    assert caught.value.field == "config.rope.factors"
    (tmp_path / "factors.json").write_text('{"factors": []}')
    with pytest.raises(InputError, match="must hold a list of numbers"):
        build.recipe(config, source)


def test_sequences_of_fine_tuning():
    config, contexts = defaults.get_config(), Measure(4096, 16384)
    plain = build.tuning(config, contexts)
    assert plain.length == 16384 and plain.skips is None and plain.mix is None
    config.train.length = 2048
    assert described(build.tuning(config, contexts)) == "sequences of 2,048 tokens"
    config.train.positions = "skip"
    tuning = build.tuning(config, contexts)
    assert tuning.length == 2048 and tuning.skips == Skips(16384, 2)
    assert described(tuning) == "sequences of 2,048 tokens whose positions skip up to 16,384"
    config.train.mix = 0.25
    mixed = build.tuning(config, contexts)
    assert mixed.mix == Mix(0.25, 4096)
    assert described(mixed) == (
        f"{described(tuning)}; 0.25 of them hold documents of at most 4,096 tokens, under the original scale vector"
    )
    config.train.steps, config.train.accumulation = 3, 1
    with pytest.raises(InputError, match="3 microbatches, none of which") as error:
        build.tuning(config, contexts)
    assert error.value.field == "config.train.mix"
