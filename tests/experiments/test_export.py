"""The export command: zero-shot and from runs, every format, cards, verification, and what it refuses."""

import dataclasses
import importlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import peft
import pytest
import torch
import transformers
from huggingface_hub import metadata_load
from safetensors.numpy import load_file, save_file

from rope_jax.cli.export import export
from rope_jax.cli.extend import extend
from rope_jax.commands.reporter import Silent
from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.errors import InputError
from rope_jax.files import read_json, sealed, unsealed, write_json
from rope_jax.interop.gguf_export import write_gguf
from rope_jax.interop.gguf_files import read_gguf_rope
from rope_jax.interop.huggingface import read_model
from rope_jax.interop.new_folder import rescale_folder
from rope_jax.interop.verify import VerificationError, verify_config, verify_gguf, verify_logits
from rope_jax.model.llama import Llama, head_kernel
from rope_jax.rope.embedding import ScaleVector, identity
from rope_jax.training.checkpoints import losses
from tests.experiments.helpers import small_config
from tests.interop.references import reference_logits, write_random_llama


def config_of(**fields):
    """`configs/export.py` with fields named as on the command line, dots as underscores."""
    config = importlib.import_module("configs.export").get_config()
    for name, value in fields.items():
        section, _, field = name.partition("__")
        if field:
            config[section][field] = value
        else:
            config[section] = value
    return config


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_random_llama(tmp_path_factory.mktemp("export") / "a-model", hidden_size=64, vocab_size=258)
    importlib.import_module("rope_jax.data.byte_tokenizer").ByteTokenizer().save(folder)
    card = "---\nlicense: llama2\nlicense_link: LICENSE.txt\nextra: 1\n---\n# A model\n"
    (folder / "README.md").write_text(card)
    (folder / "LICENSE.txt").write_text("terms")
    return folder


@pytest.fixture(scope="module")
def lora_run(texts, tmp_path_factory):
    """A whole run with low-rank updates; its second method learns the vector, too."""
    place = tmp_path_factory.mktemp("lora")
    config = small_config(texts)
    config.train.lora.rank = 3
    config.train.lora.targets = ("q", "o", "up", "norm")
    config.train.learning_rate = 1e-2
    config.train.keep = 2
    config.compare = ("learned",)
    config.learn.steps, config.learn.joint, config.learn.attention_factor = 2, True, True
    folder = place / "small"
    return folder, extend(config, folder, "small", reporter=Silent())


def test_a_gguf_file_is_a_model(model, tmp_path):
    """Its folder has its weights and its tokenizer; its GGUF file is a copy with the factors."""
    file = tmp_path / "a-model.gguf"
    write_gguf(file, model, identity(16), context=128, provenance={})
    config = config_of(model__path=str(file), rope__method="pi", export__formats=("hf", "gguf"))
    export(config, tmp_path / "out", "export")
    exported, source = read_model(tmp_path / "out" / "export"), read_model(model)
    jax.tree.map(np.testing.assert_array_equal, exported.params, source.params)
    assert load_tokenizer(tmp_path / "out" / "export").encode("a b").tolist() == list(b"a b")
    np.testing.assert_array_equal(read_gguf_rope(tmp_path / "out" / "model.gguf").factors, np.full(8, 2.0))
    assert "a-model.gguf" in (tmp_path / "out" / "README.md").read_text()
    config.export.dtype = "float16"
    with pytest.raises(InputError, match="keeps its dtypes") as error:
        export(config, tmp_path / "other", "export")
    assert error.value.field == "config.export.dtype"


def test_zero_shot_in_one_command(model, tmp_path):
    formats = ("hf", "gguf")
    results = export(
        config_of(model__path=str(model), rope__method="yarn", export__formats=formats, verify=True), tmp_path, "export"
    )
    rows = results["export"]["logits"]
    assert [row["length"] for row in rows] == [32, 128, 256]
    assert all(row["difference"] <= row["allowed"] for row in rows)
    assert json.loads((tmp_path / "verify.json").read_text()) == results
    exported, source = read_model(tmp_path / "export"), read_model(model)
    assert exported.provenance["method"] == "yarn" and exported.provenance["fine_tuning_steps"] == 0
    assert exported.config.context == read_gguf_rope(tmp_path / "model.gguf").context == 256
    np.testing.assert_array_equal(exported.params["embedding"], source.params["embedding"])
    np.testing.assert_array_equal(read_gguf_rope(tmp_path / "model.gguf").factors, exported.rope.factors)
    assert "`rope_freqs.weight`" in (tmp_path / "README.md").read_text()
    assert "`rope_type: yarn`" in (tmp_path / "export/README.md").read_text()
    assert (tmp_path / "LICENSE.txt").exists()


def test_card_inherits_the_licence_it_finds_and_claims_no_other(model, tmp_path):
    export(config_of(model__path=str(model), rope__method="pi"), tmp_path / "a", "export")
    card = tmp_path / "a/export/README.md"
    assert metadata_load(card) == {
        "library_name": "transformers",
        "license": "llama2",
        "license_link": "LICENSE.txt",
        "tags": ["rope", "long-context"],
    }
    text = card.read_text()
    for said in ("`pi`", "from 128 to 256 tokens", "8 have a factor other than 1", "None: the weights", "Not measured"):
        assert said in text
    assert str(model.parent) not in text
    assert (tmp_path / "a/export/LICENSE.txt").read_text() == "terms"
    sums = (tmp_path / "a/export/SHA256SUMS").read_text()
    assert "README.md" in sums and "LICENSE.txt" in sums

    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("README.md", "LICENSE.txt"))
    for content in (
        None,
        "# no header\n",
        "---\nlicense: [a, b]\n---\n",
        "---\n: : {\n---\n",
        "---\nlicense: |\n a\n b\n---\n",
    ):
        if content is not None:
            (bare / "README.md").write_text(content)
        config = config_of(model__path=str(bare), rope__method="pi", export__overwrite=True)
        export(config, tmp_path / "b", "export")
        card = tmp_path / "b/export/README.md"
        assert "license" not in metadata_load(card)
        assert "claims none" in card.read_text()


def test_factors_into_an_existing_gguf(model, tmp_path):
    plain = config_of(model__path=str(model), rope__method="extrapolation", export__formats=("gguf",))
    export(plain, tmp_path / "a", "export")
    file = tmp_path / "a/model.gguf"
    assert read_gguf_rope(file).factors is None
    more = config_of(
        model__path=str(model), rope__method="yarn", export__formats=("gguf",), export__gguf=str(file), verify=True
    )
    export(more, tmp_path / "b", "export")
    found = read_gguf_rope(tmp_path / "b/model.gguf")
    # 0.1 ln 2 + 1, YaRN's factor for twice the context.
    assert found.attention_factor == pytest.approx(0.1 * np.log(2) + 1)
    assert found.factors.max() == 2


@pytest.mark.slow
def test_a_run_with_lora(lora_run, tmp_path):
    """Its export is the merged model; as an adapter on the scaled base it gives the same; so does a checkpoint."""
    folder, results = lora_run
    assert results["methods"]["dprope"]["after"]["perplexity"] != results["methods"]["dprope"]["before"]["perplexity"]
    found = read_model(folder / "export")
    np.testing.assert_array_equal(found.rope.factors, np.float32(results["methods"]["dprope"]["scale"]["factors"]))
    tokens = np.random.default_rng(0).integers(0, 258, (1, 100))
    expected = np.asarray(Llama(found.config).apply({"params": found.params}, jnp.asarray(tokens), found.rope))
    np.testing.assert_allclose(reference_logits(folder / "export", tokens), expected, atol=1e-4)
    assert not np.array_equal(
        read_model(folder / "model").params["layers"]["attention"]["q"]["kernel"],
        found.params["layers"]["attention"]["q"]["kernel"],
    )

    config = config_of(export__run=str(folder), export__formats=("adapter", "gguf"), verify=True)
    export(config, tmp_path / "a", "export")
    np.testing.assert_array_equal(read_gguf_rope(tmp_path / "a/model.gguf").factors, found.rope.factors)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a/base", dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "a/adapter")
    with torch.no_grad():
        theirs = adapted(torch.asarray(tokens)).logits.numpy()
    np.testing.assert_allclose(theirs, expected, atol=1e-4)

    # Without the run's own export the checkpoint gives the same folder.
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "export")
    export(config_of(export__run=str(copy)), tmp_path / "b", "export")
    again = read_model(tmp_path / "b/export")
    jax.tree.map(np.testing.assert_array_equal, again.params, found.params)
    assert (tmp_path / "b/export/README.md").read_text() == (folder / "export/README.md").read_text()


@pytest.mark.slow
def test_best_step_of_a_run(lora_run, tmp_path):
    folder, _ = lora_run
    known = losses(folder / "methods/learned/checkpoints")
    assert known.keys() == {2, 4}
    shutil.copytree(folder, tmp_path / "run")
    # As if the loss had risen again.
    record = tmp_path / "run/methods/learned/checkpoints/2/data/metadata"
    write_json(record, sealed({**unsealed(read_json(record)), "loss": min(known.values()) - 1}))
    export(config_of(export__run=str(tmp_path / "run"), export__method="learned", export__step=-1), tmp_path, "export")
    assert read_model(tmp_path / "export").provenance["fine_tuning_steps"] == 2


@pytest.mark.slow
def test_another_method_and_step_of_a_run(lora_run, tmp_path):
    """The vector that was learned with the weights is that of the checkpoint."""
    folder, results = lora_run
    config = config_of(
        export__run=str(folder), export__method="learned", export__step=2, export__formats=("hf", "adapter")
    )
    export(config, tmp_path, "export")
    found = read_model(tmp_path / "export")
    assert found.provenance["method"] == "learned" and found.provenance["fine_tuning_steps"] == 2
    stored = ocp.StandardCheckpointer().restore(folder / "methods/learned/checkpoints/2/state")["params"]["rope"]
    np.testing.assert_allclose(found.rope.factors, np.exp(stored["factors"]), rtol=1e-6)
    assert float(found.rope.attention_factor) == pytest.approx(float(np.exp(stored["attention_factor"])))
    assert not np.array_equal(found.rope.factors, np.float32(results["methods"]["learned"]["scale"]["factors"]))

    tokens = np.random.default_rng(0).integers(0, 258, (1, 100))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    with torch.no_grad():
        theirs = adapted(torch.asarray(tokens)).logits.numpy()
    np.testing.assert_allclose(theirs, reference_logits(tmp_path / "export", tokens), atol=1e-4)


@pytest.mark.slow
def test_card_of_a_run(lora_run):
    folder, results = lora_run
    text = (folder / "export/README.md").read_text()
    for said in (
        "4 steps of 8 sequences of 128 tokens; 0.5 of them hold documents of at most 64 tokens",
        "low-rank updates (rank 3, q, o, up, norm)",
        "texts of the folder texts",
        f"| 128 tokens | {results['methods']['dprope']['before']['perplexity']['128']['perplexity']:.3f} | "
        f"{results['methods']['dprope']['after']['perplexity']['128']['perplexity']:.3f} |",
        "# A small model, 128 tokens",
        "A small model, pre-trained in the same run, its context extended from 64 to 128 tokens",
        "None is stated: the model was trained from nothing",
    ):
        assert said in text


@pytest.mark.slow
def test_checkpoints_hold_what_is_trained_alone(lora_run):
    folder, _ = lora_run
    size = sum(file.stat().st_size for file in (folder / "methods/dprope/checkpoints/4").rglob("*") if file.is_file())
    weights = (folder / "export/model.safetensors").stat().st_size
    # All weights and two moments would be three times the weights.
    assert size < 2 * weights


@pytest.mark.slow
def test_what_a_run_does_not_have(lora_run, model, tmp_path):
    folder, _ = lora_run
    for fields, field, message in (
        ({"export__method": "pi"}, "export.method", r"the run in .* has dprope, learned"),
        ({"export__step": 3}, "export.step", r"has \[2, 4\]"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            export(config_of(export__run=str(folder), **fields), tmp_path / "out", "export")
        assert caught.value.field == f"config.{field}"
    no_gguf = config_of(model__path=str(model), export__gguf="/no.gguf", export__formats=("gguf",))
    with pytest.raises(InputError, match=r"/no\.gguf is no file"):
        export(no_gguf, tmp_path / "out", "export")
    assert not (tmp_path / "out").exists()
    export(config_of(model__path=str(model)), tmp_path / "out", "export")
    with pytest.raises(InputError, match=r"already exists: choose another --workdir"):
        export(config_of(model__path=str(model)), tmp_path / "out", "export")


def test_verification_sees_what_differs(model, tmp_path):
    """A word that an engine would take for another scale, and another vector."""
    rope = ScaleVector.create(np.linspace(1, 2, 8))
    rescale_folder(model, tmp_path / "export", rope, context=256, provenance={})
    path = tmp_path / "export/config.json"
    good = json.loads(path.read_text())

    def changed(**scaling):
        path.write_text(json.dumps(good | {key: good[key] | scaling for key in ("rope_scaling", "rope_parameters")}))

    # What vLLM would take for an extension and scale by.
    changed(original_max_position_embeddings=128)
    with pytest.raises(VerificationError, match="original_max_position_embeddings is 128 where 256"):
        verify_config(tmp_path / "export", rope)
    changed(attention_factor=1.1)
    with pytest.raises(VerificationError, match=r"attention factor is 1\.1"):
        verify_config(tmp_path / "export", rope)
    changed(attention_factor=1.1)
    with pytest.raises(VerificationError, match=r"short_mscale is None where 1\.1"):
        verify_config(tmp_path / "export", dataclasses.replace(rope, attention_factor=np.float32(1.1)))
    path.write_text(json.dumps(good | {"rope_parameters": {**good["rope_parameters"], "rope_theta": 10000}}))
    verify_config(tmp_path / "export", rope)
    with pytest.raises(VerificationError, match="the factors is"):
        verify_config(tmp_path / "export", identity(16))
    write_gguf(tmp_path / "model.gguf", model, rope, context=256, provenance={})
    with pytest.raises(VerificationError, match=r"scale vector of rotary base 10000 is \[1"):
        verify_gguf(tmp_path / "model.gguf", identity(16), base=10000.0, context=256)


def test_verification_compares_with_the_source(model, tmp_path, monkeypatch):
    """An export of other weights, or another vector, is seen, in full precision whatever the device's default."""
    rope = ScaleVector.create(np.linspace(1, 2, 8), 1.2)
    rescale_folder(model, tmp_path / "export", rope, context=256, provenance={})
    precisions = []
    monkeypatch.setattr(
        "rope_jax.interop.verify.head_kernel",
        lambda *args: precisions.append(jax.config.jax_default_matmul_precision) or head_kernel(*args),
    )
    rows = verify_logits(model, model, identity(16), (5, 100), dtype="bfloat16")
    assert 0 < rows[1]["difference"] <= rows[1]["allowed"]
    assert set(precisions) == {"highest"}
    with pytest.raises(VerificationError, match="at 100 tokens transformers' logits differ by"):
        verify_logits(tmp_path / "export", model, identity(16), (100,))
    file = tmp_path / "export/model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.self_attn.q_proj.weight"] *= 1.001  # as much as rounding to bfloat16
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(VerificationError, match="at 100 tokens transformers' logits differ by"):
        verify_logits(tmp_path / "export", model, rope, (100,))
    monkeypatch.setattr("rope_jax.interop.verify._transformers_logits", lambda *_: [np.full((1, 5, 258), np.nan)])
    with pytest.raises(VerificationError, match="at 5 tokens transformers' logits differ by nan"):
        verify_logits(tmp_path / "export", model, rope, (5,))


def test_an_overwritten_export_is_not_verified_any_more(model, tmp_path):
    config = config_of(model__path=str(model), rope__method="pi", export__overwrite=True)
    (tmp_path / "verify.json").write_text('{"export": {"logits": []}, "model.gguf": "the vector"}')
    assert export(config, tmp_path, "export") == {"model.gguf": "the vector"}
    assert json.loads((tmp_path / "verify.json").read_text()) == {"model.gguf": "the vector"}
