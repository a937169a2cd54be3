"""The library in few lines, against transformers and the paper, and its page as it is printed."""

import contextlib
import json
import re
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

import rope_jax
from rope_jax.commands import extend
from rope_jax.commands.reporter import Silent
from rope_jax.commands.run import Run
from rope_jax.data.byte_tokenizer import ByteTokenizer
from rope_jax.errors import InputError
from rope_jax.rope.methods import METHODS
from rope_jax.rope.methods.registered import REGISTERED, named
from rope_jax.runs.folder import RunFolder
from tests.conftest import REPOSITORY
from tests.interop.references import reference_logits, write_random_llama


@contextlib.contextmanager
def forgotten():
    """Methods that the block defines are gone after it."""
    try:
        yield
    finally:
        REGISTERED.clear()


PAGE = (REPOSITORY / "docs/library.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api") / "model"
    tokenizer = ByteTokenizer()
    write_random_llama(folder, vocab_size=tokenizer.vocab_size)
    tokenizer.save(folder)
    return folder


def test_a_model_under_a_vector_equals_transformers(folder, tmp_path):
    model = rope_jax.load(str(folder))
    tokens = np.random.default_rng(0).integers(0, 250, 200)
    # Sums of some hundred float32 terms in another order.
    same = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    same(model.logits(tokens), reference_logits(folder, tokens[None])[0])

    config = json.loads((folder / "config.json").read_text())
    theta = config["rope_parameters"]["rope_theta"]
    yarn = {"rope_type": "yarn", "rope_theta": theta, "factor": 4.0, "original_max_position_embeddings": 128}
    other = tmp_path / "yarn"
    other.mkdir()
    (other / "model.safetensors").symlink_to(folder / "model.safetensors")
    (other / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512, "rope_parameters": yarn}))
    expected = reference_logits(other, tokens[None])[0]
    longer = model.under("yarn", target=512)
    same(longer.logits(tokens), expected)
    same(model.under(rope_jax.solve("yarn", model, 512)).logits(tokens), expected)
    logs = expected - np.log(np.sum(np.exp(expected), axis=1, keepdims=True))
    same(longer.nll(tokens), -logs[np.arange(199), tokens[1:]])


def test_text_begins_as_the_tokenizer_says(folder):
    model = rope_jax.load(str(folder))
    text = "ab"
    start = [] if model.tokenizer.bos_id is None else [model.tokenizer.bos_id]
    np.testing.assert_array_equal(model.logits(text), model.logits([*start, *model.tokenizer.encode(text)]))


def test_the_likeliest_tokens_are_those_of_transformers(folder):
    model = rope_jax.load(str(folder))
    tokens = [1, 2, 3]
    for _ in range(4):
        tokens.append(int(reference_logits(folder, np.array([tokens]))[0, -1].argmax()))
    assert model.tokenizer.eos_id not in tokens
    assert model.generate(tokens[:3], max_new_tokens=4) == model.tokenizer.decode(tokens[3:])


def test_a_vector_disturbs_what_the_paper_says():
    geometry = rope_jax.Geometry(10000.0, 128, rope_jax.ScaleVector.create(np.ones(64)))
    solution = rope_jax.solve("dprope_argmin", geometry, 8192, 4096)
    assert 1e3 * solution.disturbance.mean() == pytest.approx(6.71, abs=0.011)
    again = rope_jax.disturbance(solution.scale, geometry, 8192, 4096)
    np.testing.assert_array_equal(again, solution.disturbance)
    # A method may be an object.
    same = rope_jax.solve(METHODS["dprope_argmin"](), geometry, 8192, 4096)
    np.testing.assert_array_equal(same.scale.factors, solution.scale.factors)


def test_unknown_names_are_refused(folder):
    with pytest.raises(InputError) as caught:
        rope_jax.solve("yarnn", rope_jax.load(str(folder)), 512)
    assert caught.value.field == "method"
    with pytest.raises(AttributeError):
        rope_jax.nothing  # noqa: B018


def test_the_page_runs_as_printed(folder, capsys, tmp_path, monkeypatch):
    *codes, mine, last = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (tmp_path / "my_vectors.py").write_text(mine)
    monkeypatch.syspath_prepend(tmp_path)
    names = {}
    with forgotten():
        for code in (*codes, last):
            exec(compile(code.replace("MODEL", str(folder)), "docs/library.md", "exec"), names)
    printed = re.findall(r"# ([\d.]+)\n", PAGE)
    assert [f"{float(line):.2f}" for line in capsys.readouterr().out.splitlines()[-len(printed) :]] == printed


LLAMA2 = rope_jax.Geometry(10000.0, 128, rope_jax.ScaleVector.create(np.ones(64)))


def test_a_function_is_a_method():
    with forgotten():

        @rope_jax.method("power")
        def power(geometry, measure, exponent=1.0):
            pairs = geometry.head_dim // 2
            return measure.extension ** (exponent * np.arange(pairs) / (pairs - 1))

        same = partial(np.testing.assert_array_equal, rope_jax.solve("ntk", LLAMA2, 8192, 4096).scale.factors)
        same(rope_jax.solve("power", LLAMA2, 8192, 4096).scale.factors)
        same(np.float32(power(LLAMA2, rope_jax.Measure(4096, 8192))))
        still = rope_jax.solve("power", LLAMA2, 8192, 4096, exponent=0.0)
        np.testing.assert_array_equal(still.scale.factors, np.ones(64))
        for taken in ("power", "yarn", "own", "a/b", "mine_t3"):
            with pytest.raises(InputError) as caught:
                rope_jax.method(taken)
            assert caught.value.field == "name"


def test_a_class_is_a_method():
    with forgotten():
        rope_jax.method("other")(METHODS["ntk"])
        solution = rope_jax.solve("other", LLAMA2, 8192, 4096)
    np.testing.assert_array_equal(solution.scale.factors, rope_jax.solve("ntk", LLAMA2, 8192, 4096).scale.factors)


def test_a_run_is_not_resumed_with_another_definition(tmp_path):
    def run(factor):
        REGISTERED.clear()
        rope_jax.method("mine")(lambda geometry, measure: np.full(64, factor))
        recipe = SimpleNamespace(methods={"mine": named("mine")()}, geometry=LLAMA2, measure=rope_jax.Measure(64, 128))
        folder = RunFolder(tmp_path)
        return cast(Run, SimpleNamespace(folder=folder, method_folder=folder.at, recipe=recipe))

    with forgotten():
        first = extend.solve(run(1.5), "mine", Silent())
        np.testing.assert_array_equal(extend.solve(run(1.5), "mine", Silent()).factors, first.factors)
        with pytest.raises(InputError, match="the factors of 'mine' have changed") as caught:
            extend.solve(run(2.0), "mine", Silent())
    assert caught.value.field == "methods"


def test_functions_that_are_no_methods_are_named():
    with forgotten():
        rope_jax.method("short")(lambda geometry, measure: [1.0, 2.0])
        with pytest.raises(InputError, match=r"method short: factors has shape \[2\]"):
            rope_jax.solve("short", LLAMA2, 8192, 4096)
        with pytest.raises(InputError, match="no default") as caught:
            rope_jax.method("open")(lambda geometry, measure, least: [])
        assert caught.value.field == "least"


def test_the_package_alone_imports_nothing():
    code = (
        "import rope_jax, sys; assert rope_jax.__version__; print(*{'jax', 'numpy', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
