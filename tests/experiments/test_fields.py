"""Every message names a field that exists: one that is wrong on its own, and one that does not fit the others."""

import dataclasses
import json
import math
import re

import pytest

from configs import defaults
from rope_jax.cli import build, names
from rope_jax.cli.analyze import analyze
from rope_jax.cli.evaluate import evaluate
from rope_jax.cli.export import export
from rope_jax.cli.extend import extend, mesh_sizes, plan_on
from rope_jax.commands.fields import FIELDS, METHOD_FIELDS
from rope_jax.commands.reporter import Silent
from rope_jax.errors import InputError
from rope_jax.rope.methods import METHODS
from tests.experiments.helpers import assigned, small_config
from tests.interop.references import write_random_llama

KNOWN = {field.name for field in FIELDS}


def bad_values(field):
    """Values of the wrong type, and just outside what the check accepts."""
    kind = type(field.default)
    wrong = [] if kind is str else ["text"]
    wrong += {str: [3], bool: [1], int: [1.5], float: [], tuple: [(object,)]}[kind]
    check = field.check
    if check:
        outside = [check.least is not None and check.least - 1, check.above is not None and check.above]
        outside += [check.most is not None and check.most + 1, check.below is not None and check.below]
        outside += [1] if check.zero else []
        outside = [value for value in outside if value is not False] or ["nonsense"]
        if kind is float:
            outside = [*map(float, outside), float("nan")]
        wrong += [(field.element(value),) for value in outside] if kind is tuple else outside
    return wrong


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_a_field_that_is_wrong_on_its_own_is_named(tmp_path, field):
    assert field.meaning
    for value in bad_values(field):
        config = assigned(defaults.get_config(), {field.name: value})
        with pytest.raises(InputError) as caught:
            extend(config, tmp_path / "run", "run", reporter=Silent())
        assert caught.value.field == f"config.{field.name}"
        assert f"config.{field.name} is {value!r}: " in str(caught.value)
    assert not (tmp_path / "run").exists()


NUMBERS = [field for field in FIELDS if type(field.default) in (int, float) or field.element in (int, float)]


@pytest.mark.parametrize("field", NUMBERS, ids=lambda field: field.name)
def test_numbers_that_no_machine_can_use_are_refused(field):
    """Also of fields whose own limits a test above does not pass: those of int32, and what is no number."""
    whole = int in (type(field.default), field.element)
    absurd = [10**12, -(10**12), 10**400, 10**5000] if whole else [1e300, -1e300, math.inf, -math.inf, math.nan]
    for value in absurd:
        with pytest.raises(InputError, match=rf"`{field.name}` is .{{1,110}}: it must be ") as caught:
            field.check_value((value,) if isinstance(field.default, tuple) else value)
        assert caught.value.field == field.name


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("angles.intervals", 10**9),
        ("context.original", 1),
        ("context.target", 1),
        ("train.learning_rate", 1e30),
        ("pretrain.global_batch", 0),
        ("pretrain.checkpoint_every", -1),
        ("train.b2", 1.0),
        ("train.clip_norm", -1.0),
        ("eval.passkey_trials", 10**9),
    ],
)
def test_limits(name, bad):
    (field,) = (field for field in FIELDS if field.name == name)
    field.check_value(field.default)
    with pytest.raises(InputError):
        field.check_value(bad)


@pytest.mark.parametrize("command", [analyze, evaluate, export])
def test_every_command_checks_fields(tmp_path, command):
    config = assigned(defaults.get_config(), {"train.steps": 0})
    with pytest.raises(InputError, match=r"config\.train\.steps is 0: it must be at least 1") as caught:
        command(config, tmp_path / "run", "run", reporter=Silent())
    assert caught.value.field == "config.train.steps"
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_random_llama(tmp_path_factory.mktemp("fields") / "a-model", hidden_size=64, vocab_size=258)
    build.load_tokenizer("bytes").save(folder)
    return folder


# Fields that fit their checks, and not the model, the devices or one another: values, and the field at fault.
UNFIT = [
    ({"context.target": 32}, "context.target"),
    ({"context.target": 64}, "context.target"),
    ({"context.target": 2**24 + 8}, "context.target"),
    ({"rope.base": 1.0}, "rope.base"),
    ({"rope.head_dim": 15}, "rope.head_dim"),
    ({"model.attention": "splash"}, "model.attention"),
    ({"pretrain.num_kv_heads": 3}, "pretrain.num_kv_heads"),
    ({"solve.n_hat": 7}, "solve.n_hat"),
    ({"solve.n_hat": 18}, "solve.n_hat"),
    ({"solve.resolution": 4.0, "compare": ("dprope_robust",)}, "solve.resolution"),
    ({"rope.method": "abf"}, "rope.new_base"),
    ({"rope.new_base": 100.0, "compare": ("abf",)}, "rope.new_base"),
    ({"rope.method": "own"}, "rope.method"),
    ({"compare": ("own",)}, "compare"),
    ({"rope.method": "explicit"}, "rope.factors"),
    ({"rope.attention_factor": "hot"}, "rope.attention_factor"),
    ({"compare": ("yarn@hot",)}, "compare"),
    ({"compare": ("learned@1.1",)}, "compare"),
    ({"rope.method": "yarn@"}, "rope.method"),
    ({"rope.method": "two_term", "solve.distances": "/nowhere.json"}, "solve.distances"),
    ({"rope.method": "explicit", "rope.factors": "/nowhere.json"}, "rope.factors"),
    ({"data.path": ""}, "data.path"),
    ({"data.path": "/nowhere"}, "data.path"),
    ({"eval.split": "dev"}, "eval.split"),
    ({"model.path": "/nowhere"}, "model.path"),
    ({"pretrain.tokenizer": "/nowhere"}, "pretrain.tokenizer"),
    ({"model.path": "MODEL", "data.tokenizer": "/nowhere"}, "data.tokenizer"),
    ({"model.path": "MODEL", "rope.base": 500000.0}, "rope.base"),
    ({"model.path": "MODEL", "rope.head_dim": 32}, "rope.head_dim"),
    ({"train.global_batch": 6}, "train.global_batch"),
    ({"train.positions": "skip"}, "train.length"),
    ({"train.positions": "skip", "train.length": 256}, "train.length"),
    ({"mesh.fsdp": 1, "mesh.context": 8, "train.length": 72}, "train.length"),
    ({"train.accumulation": 3}, "train.accumulation"),
    ({"train.warmup_steps": 5}, "train.warmup_steps"),
    ({"train.lora.rank": 64}, "train.lora.rank"),
    ({"train.lora.rank": 2, "train.lora.targets": ("norm",)}, "train.lora.targets"),
    ({"train.lora.rank": 2, "train.lora.targets": ("q", "head")}, "train.lora.targets"),
    ({"pretrain.warmup_steps": 9}, "pretrain.warmup_steps"),
    ({"pretrain.global_batch": 6}, "pretrain.global_batch"),
    ({"pretrain.steps": 0}, "pretrain.steps"),
    ({"pretrain.tokenizer": "MODEL"}, "pretrain.tokenizer"),
    ({"eval.recall_lengths": (32,)}, "eval.recall_lengths"),
    ({"eval.batch": 6}, "eval.batch"),
    ({"eval.passkey_batch": 6}, "eval.passkey_batch"),
    ({"eval.passkey_trials": 5}, "eval.passkey_lengths"),
    ({"eval.document_tokens": 100}, "data.path"),
    ({"learn.start": "abf"}, "rope.new_base"),
    ({"learn.batch": 6}, "learn.batch"),
    ({"data.streams": 3}, "data.streams"),
    ({"mesh.tensor": 3}, "mesh.tensor"),
    ({"mesh.context": 64}, "mesh.context"),
    ({"mesh.data": 0}, "mesh.data"),
    ({"mesh.fsdp": 1, "mesh.context": 8, "context.target": 136}, "context.target"),
    ({"mesh.fsdp": 1, "mesh.context": 8, "context.original": 72}, "context.original"),
]


def shown(values):
    return ",".join(f"{name}={value}" for name, value in values.items())


@pytest.mark.parametrize(("values", "field"), UNFIT, ids=[shown(values) for values, _ in UNFIT])
def test_a_field_that_does_not_fit_is_named_before_anything_runs(texts, model, tmp_path, values, field):
    values = {name: str(model) if value == "MODEL" else value for name, value in values.items()}
    config = assigned(small_config(texts), values)
    with pytest.raises(InputError) as caught:
        extend(config, tmp_path / "run", "run", reporter=Silent())
    assert caught.value.field == f"config.{field}", str(caught.value)
    assert f"config.{field}" in str(caught.value)
    assert not re.search(r"`[\w.]+`", str(caught.value))
    assert not (tmp_path / "run/methods").exists() and not (tmp_path / "run/config.json").exists()


UNEXPORTABLE = [
    ({}, "model.path"),
    ({"export.formats": ()}, "export.formats"),
    ({"export.run": "/nowhere"}, "export.run"),
    ({"model.path": "MODEL", "export.formats": ("adapter",)}, "export.formats"),
    ({"model.path": "MODEL", "export.gguf": "a.gguf"}, "export.formats"),
    ({"model.path": "MODEL", "rope.method": "learned"}, "rope.method"),
    ({"model.path": "MODEL", "context.target": 100}, "context.target"),
    ({"model.path": "MODEL", "rope.factors": "LAYERS", "rope.method": "explicit"}, "rope.factors"),
]


@pytest.mark.parametrize(("values", "field"), UNEXPORTABLE, ids=[shown(values) for values, _ in UNEXPORTABLE])
def test_what_cannot_be_exported_is_named_before_anything_is_written(model, tmp_path, values, field):
    (tmp_path / "layers.json").write_text(json.dumps([[1.0] * 8, [2.0] * 8]))
    places = {"MODEL": str(model), "LAYERS": str(tmp_path / "layers.json")}
    values = {name: places.get(value, value) if isinstance(value, str) else value for name, value in values.items()}
    config = assigned(defaults.get_config(), {"context.target": 0, **values})
    with pytest.raises(InputError) as caught:
        export(config, tmp_path / "out", "export", reporter=Silent())
    assert caught.value.field == f"config.{field}", str(caught.value)
    assert not re.search(r"`[\w.]+`", str(caught.value))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"mesh.fsdp": 8, "train.global_batch": 6}, "train.global_batch"),
        ({"mesh.tensor": 8}, "mesh.tensor"),
        ({"mesh.fsdp": 4, "mesh.context": 2, "context.target": 130}, "context.target"),
        ({"plan.model": "nowhere"}, None),
    ],
)
def test_what_cannot_be_planned(values, field):
    config = assigned(small_config("/nowhere"), values)
    with pytest.raises(InputError) as caught:
        plan_on(config, "small", mesh_sizes("", dict(config.mesh)), Silent())
    assert "nowhere" in str(caught.value) if field is None else caught.value.field == f"config.{field}"


def test_analysis_needs_a_geometry_or_a_model(tmp_path):
    with pytest.raises(InputError, match=r"are not all set, and config\.model\.path is empty") as caught:
        analyze(defaults.get_config(), tmp_path, "run", reporter=Silent())
    assert caught.value.field == "config.model.path"
    config = assigned(defaults.get_config(), {"rope.base": 1e4, "rope.head_dim": 127, "context.original": 4096})
    with pytest.raises(InputError) as caught:
        analyze(config, tmp_path, "run", reporter=Silent())
    assert caught.value.field == "config.rope.head_dim"


def test_every_argument_is_renamed_to_a_field_that_exists():
    shown = {name.removeprefix("config.") for name in names.NAMES.values()} - {"--workdir", "mesh"}
    assert shown <= KNOWN


def test_every_parameter_of_a_method_has_a_field():
    for name, method in METHODS.items():
        for parameter in dataclasses.fields(method):
            assert name == "explicit" or METHOD_FIELDS[parameter.name] in KNOWN
