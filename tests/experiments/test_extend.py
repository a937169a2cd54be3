"""The main job: end to end, resumed, exported into transformers, and refused with a clear message."""

import contextlib
import json
import math
import os
import shutil
import time
import weakref
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from rope_jax.cli.evaluate import evaluate
from rope_jax.cli.extend import extend, prepare, rehearse
from rope_jax.commands import extend as procedure
from rope_jax.commands.reporter import Silent
from rope_jax.errors import InputError
from rope_jax.files import sealed, unsealed
from rope_jax.interop.huggingface import read_model
from rope_jax.model.llama import Llama
from rope_jax.report.metrics import read_metrics
from rope_jax.report.page import signed
from rope_jax.runs.folder import RunFolder
from rope_jax.training.checkpoints import Checkpoints
from tests.experiments.helpers import assigned, run_small, small_config
from tests.processes import forked


def test_steps_asked_for_are_traced(finished):
    folder, _ = finished
    for training in ("pretrain", "methods/dprope"):
        assert list((folder / training / "profile").rglob("*.xplane.pb"))


def test_results_hold_every_method_before_and_after(finished):
    folder, results = finished
    assert json.loads((folder / "results.json").read_text()) == results
    assert list(results["methods"]) == ["dprope", "yarn", "learned"]
    for method in results["methods"].values():
        for stage in ("before", "after"):
            for window in ("64", "128"):
                measured = method[stage]["perplexity"][window]
                assert math.isfinite(measured["perplexity"])
                # 2000 tokens; BOS in front of each document makes its first token scorable.
                assert measured["tokens"] == 2000
            buckets = method[stage]["by_position"]["buckets"]
            assert buckets[0]["start"] == 1
            assert buckets[-1]["end"] == 128
    assert results["methods"]["dprope"]["scale"]["interpolated_dimensions"] == 8
    for stage in ("before", "after"):
        assert list(results["comparisons"][stage]) == ["yarn", "learned"]
        means = [np.log(results["methods"][m][stage]["perplexity"]["128"]["perplexity"]) for m in ("dprope", "yarn")]
        found = results["comparisons"][stage]["yarn"]["128 token"]["difference"]
        assert found == pytest.approx(means[1] - means[0], abs=1e-9)
    lines = [json.loads(line) for line in (folder / "methods/dprope/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]


def test_share_of_tokens_past_the_original_context(finished, texts):
    """Texts of some 4,000 bytes in rows of 128 tokens: half of all tokens, less the first 64 of each text."""
    sizes = [path.stat().st_size + 2 for path in (texts / "train").iterdir()]
    expected = 0.5 * (1 - 64 * len(sizes) / sum(sizes))
    assert finished[1]["data"]["share_past_original_context"] == pytest.approx(expected, rel=1e-3)


def test_one_method_at_a_time_is_in_memory(tmp_path, monkeypatch):
    """What a method has trained is gone, evaluated and exported, before the next one trains."""
    trained, used = [], []

    class Tuned:
        pass

    def fine_tune(*_):
        assert all(reference() is None for reference in trained)
        tuned = Tuned()
        trained.append(weakref.ref(tuned))
        return tuned

    monkeypatch.setattr(procedure, "fine_tune", fine_tune)
    for name in ("evaluate", "export"):
        monkeypatch.setattr(procedure, name, lambda *_, name=name, **__: used.append(name))
    run = SimpleNamespace(
        recipe=SimpleNamespace(exported="dprope"), folder=RunFolder(tmp_path), method_folder=RunFolder(tmp_path).at
    )
    for method in ("dprope", "pi", "yarn"):
        assert procedure.tune(run, method, None, {}, Silent()) is None
    assert used == ["evaluate", "export", "evaluate", "evaluate"] and len(trained) == 3


def test_learned_factors_start_where_asked_and_are_trained_with_the_weights(finished):
    _, results = finished
    scale = results["methods"]["learned"]["scale"]
    assert len(scale["losses"]) == 3 and scale["start"] == "ntk"
    low, high = np.asarray(scale["gradient"]["interval"])
    assert (
        low.shape == (8,)
        and (low <= scale["gradient"]["factors"]).all()
        and (scale["gradient"]["factors"] <= high).all()
    )
    assert scale["gradient"]["attention_factor"] != 0
    # Adam moves a logarithm by at most about the learning rate per step: from the NTK-aware factors, s^(2i / (d - 2)).
    ntk = 2.0 ** (np.arange(0, 16, 2) / 14)
    moved = np.abs(np.log(np.array(scale["factors"]) / ntk))
    assert 0.01 < moved.max() <= 3 * 0.02 * 1.1
    before, after = (results["methods"]["learned"][stage]["factors"] for stage in ("before", "after"))
    assert before == scale["factors"] and before != after
    assert results["methods"]["yarn"]["after"]["factors"] == results["methods"]["yarn"]["scale"]["factors"]


def test_page_shows_every_method_and_its_pictures_exist(finished):
    folder, results = finished
    page = (folder / "report.md").read_text()
    for name in ("DPRoPE", "YaRN", "before", "after", "| `train.mix` | `0.5` | `0.0` |"):
        assert name in page
    gain = results["comparisons"]["gain"]["dprope"]["regions"]
    for text in (page, (folder / "report.html").read_text()):
        for place in gain.values():
            assert signed(place["difference"], place["interval"], 3) in text
    pictures = [line.split("(")[1].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert len(pictures) == 6
    for picture in pictures:
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_trained_export_gives_the_same_logits_in_transformers(finished):
    folder, results = finished
    model = read_model(folder / "export")
    np.testing.assert_array_equal(model.rope.factors, np.float32(results["methods"]["dprope"]["scale"]["factors"]))
    reference = transformers.LlamaForCausalLM.from_pretrained(folder / "export", dtype=torch.float32)
    assert reference.config.max_position_embeddings == 128
    tokens = np.random.default_rng(0).integers(0, 258, (2, 128))
    for length in (48, 128):  # within the original context, and the whole extended one
        ours = Llama(model.config).apply({"params": model.params}, jnp.asarray(tokens[:, :length]), model.rope)
        with torch.no_grad():
            theirs = reference(torch.tensor(tokens[:, :length])).logits.numpy()
        # float32 sums in another order.
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_export_is_what_was_trained(finished):
    """The exported tensors are the last checkpoint's parameters, bit for bit."""
    folder, _ = finished
    exported = read_model(folder / "export").params
    with Checkpoints(folder / "methods/dprope/checkpoints") as checkpoints:
        assert checkpoints.latest() == 4
    restored = _restored_params(folder / "methods/dprope/checkpoints/4/state")
    for ours, theirs in zip(jax.tree.leaves(exported), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def _restored_params(folder):
    import orbax.checkpoint as ocp

    return ocp.StandardCheckpointer().restore(folder)["params"]


def test_export_has_a_tokenizer_that_transformers_loads(finished):
    folder, _ = finished
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "export")
    assert tokenizer("twice\n").input_ids[-6:] == list(b"twice\n")


def test_second_command_computes_nothing_again(finished, texts, monkeypatch):
    folder, results = finished
    for name in ("fit", "pretrain", "solution_record", "evaluation_record", "export"):
        monkeypatch.setattr(
            f"rope_jax.commands.extend.{name}", lambda *a, name=name, **k: pytest.fail(f"{name} ran again")
        )
    again = extend(small_config(texts), folder, "small", reporter=Silent())
    assert again["methods"] == results["methods"]


def test_an_evaluation_of_another_vector_is_measured_anew(finished, texts, tmp_path, monkeypatch, capsys):
    folder, results = finished
    shutil.copytree(folder, tmp_path / "small")
    path = tmp_path / "small/methods/yarn/before.json"
    record = unsealed(json.loads(path.read_text()))
    path.write_text(json.dumps(sealed({**record, "of": {**record["of"], "vector": "another"}})))
    measured = []

    def evaluation_record(run, model):
        measured.append(np.asarray(model.rope.factors))
        return {key: value for key, value in record.items() if key != "of"}

    monkeypatch.setattr("rope_jax.commands.extend.evaluation_record", evaluation_record)
    again = extend(small_config(texts), tmp_path / "small", "small")
    np.testing.assert_array_equal(measured, np.float32([results["methods"]["yarn"]["scale"]["factors"]]))
    assert again["methods"] == results["methods"]
    assert "before.json is of another vector: measured anew" in capsys.readouterr().out


@pytest.mark.slow
def test_a_method_can_be_added_to_a_finished_run(finished, texts, tmp_path):
    folder, results = finished
    shutil.copytree(folder, tmp_path / "small")
    config = small_config(texts)
    with config.unlocked():
        config.compare = ("yarn", "pi")
    more = extend(config, tmp_path / "small", "small", reporter=Silent())
    assert list(more["methods"]) == ["dprope", "yarn", "pi"]
    assert more["methods"]["dprope"] == results["methods"]["dprope"]


def test_another_config_is_not_mixed_in(finished, texts):
    folder, _ = finished
    config = small_config(texts)
    config.train.steps = 5
    with pytest.raises(InputError, match=r"is 5, but the run in .* has 4.*another --workdir") as caught:
        extend(config, folder, "small", reporter=Silent())
    assert caught.value.field == "config.train.steps"


@pytest.mark.slow
def test_a_run_over_cut_sequences_measures_the_same(finished, texts, tmp_path):
    folder, whole = finished
    config = small_config(texts)
    with config.unlocked():
        config.compare = ()
    config.mesh.data, config.mesh.fsdp, config.mesh.context = 2, 1, 4
    cut = extend(config, tmp_path / "cut", "small", reporter=Silent())["methods"]["dprope"]
    for name in ("pretrain", "methods/dprope"):
        ours, theirs = (read_metrics(place / name / "metrics.jsonl") for place in (tmp_path / "cut", folder))
        assert len(ours) == len(theirs) == 4
        for a, b in zip(ours, theirs):
            assert a["tokens"] == b["tokens"]
            # The same float32 sums in another order, through eight updates of Adam.
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    for window, measured in cut["after"]["perplexity"].items():
        expected = whole["methods"]["dprope"]["after"]["perplexity"][window]["perplexity"]
        assert measured["perplexity"] == pytest.approx(expected, rel=1e-3)


def test_a_corrected_field_fits_the_same_folder(texts, tmp_path):
    config = small_config("/nowhere")
    with contextlib.ExitStack() as held, pytest.raises(InputError, match="does not exist"):
        prepare(config, tmp_path / "run", "small", Silent(), held)
    config.data.path = str(texts)
    with contextlib.ExitStack() as held:
        prepare(config, tmp_path / "run", "small", Silent(), held)
        with pytest.raises(InputError, match=r"--workdir is .*/run, where another command is running") as caught:
            extend(config, tmp_path / "run", "small", reporter=Silent())
        assert caught.value.field == "--workdir"


def test_other_texts_of_the_same_names_are_not_mixed_in(finished, texts, tmp_path):
    folder, results = finished
    copy = shutil.copytree(texts, tmp_path / "texts")
    shutil.copytree(folder, tmp_path / "run")
    config = small_config(copy)
    config_file = tmp_path / "run" / "config.json"
    config_file.write_text(config_file.read_text().replace(str(texts), str(copy)))
    assert extend(config, tmp_path / "run", "small", reporter=Silent())["methods"] == results["methods"]
    text = copy / "train" / "3.txt"
    text.write_text(text.read_text().replace("angle", "ankle"))
    for compare in (config.compare, ("yarn", "pi")):  # resumed, and with a method added
        with config.unlocked():
            config.compare = compare
        with pytest.raises(InputError, match=r"config\.data\.path: these are not the texts that the run in") as caught:
            extend(config, tmp_path / "run", "small", reporter=Silent())
        assert caught.value.field == "config.data.path"


def test_empty_text_folder(tmp_path):
    (tmp_path / "texts").mkdir()
    with pytest.raises(InputError, match=r"data\.path: .* holds no file ending in \.txt"):
        extend(small_config(tmp_path / "texts"), tmp_path / "run", "small", reporter=Silent())


def test_invalid_utf8_names_the_file_and_place(texts, tmp_path):
    shutil.copytree(texts, tmp_path / "texts")
    (tmp_path / "texts/train/bad.txt").write_bytes(b"abc\xff")
    with pytest.raises(InputError, match=r"bad\.txt.*3"):
        extend(small_config(tmp_path / "texts"), tmp_path / "run", "small", reporter=Silent())


def test_full_disk_is_said_before_anything_runs(texts, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=0))
    with pytest.raises(InputError, match=r"--workdir is .*, with 0\.0 GB free.*need"):
        extend(small_config(texts), tmp_path / "run", "small", reporter=Silent())


def test_a_dry_run_plans_every_stage_and_leaves_nothing(texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rope_jax.plan.minutes.WORTH_TIMING", 0)
    rehearse(small_config(texts), tmp_path / "run", "small")
    stages = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert stages == {"pre-training", "solving", "perplexity", "recall", "fine-tuning", "export"}
    assert not list(tmp_path.iterdir())


def test_a_dry_run_of_a_finished_run_has_nothing_to_do(finished, texts, capsys):
    rehearse(small_config(texts), finished[0], "small")
    assert "every stage has finished" in capsys.readouterr().out
    other = small_config(texts)
    other.train.steps = 5
    with pytest.raises(InputError, match=r"train\.steps"):
        rehearse(other, finished[0], "small")


def test_a_step_that_no_device_holds_is_said(texts, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 1)
    with pytest.raises(InputError, match=r"train\.global_batch.* a training step, and a device has 0\.0 GiB"):
        rehearse(small_config(texts), tmp_path / "run", "small")


def signs(whole):
    """Files at which to kill a run: of some stages the first, with ROPE_JAX_LONG=1 twenty of all stages in order."""
    if not os.environ.get("ROPE_JAX_LONG"):
        return ["pretrain/checkpoints/2", "methods/yarn/before.json", "methods/dprope/checkpoints/2"]
    made = [path for path in whole.rglob("*") if path.is_file() and not {"profile", "compiled"} & {*path.parts}]
    made.sort(key=lambda path: path.stat().st_mtime)
    return [made[i].relative_to(whole) for i in np.linspace(0, len(made) - 1, 20).astype(int)]


@pytest.mark.slow
def test_killed_anywhere_the_same_command_resumes(finished, texts, tmp_path):
    """kill -9 soon after a stage's file appears; the end is bit for bit the undisturbed run's."""
    folder, random, kills = tmp_path / "small", np.random.default_rng(0), []
    for sign in signs(finished[0]):
        with forked(run_small, folder, texts, 8) as child:
            while child.is_alive() and not (folder / sign).exists():
                time.sleep(0.01)
            child.join(random.uniform(0, 0.2))
            kills += [sign] * child.is_alive()
    print(f"{len(kills)} kills, after {', '.join(map(str, kills))}")
    with forked(run_small, folder, texts, 8) as child:
        child.join()
        assert child.exitcode == 0
    whole, killed = (read_model(path / "export").params for path in (finished[0], folder))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(killed), strict=True):
        np.testing.assert_array_equal(a, b)
    metrics = (folder / "methods/dprope/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 2, 3, 4]


def test_recall_is_measured_and_the_export_recalls_the_same(finished, texts, tmp_path):
    folder, results = finished
    records = {stage: results["methods"]["dprope"][stage]["recall"] for stage in ("before", "after")}
    for record in records.values():
        assert [cell["samples"] for cell in record["table"]["recall"].values()] == [8, 8]
        assert record["grids"]["recall"]["lengths"] == [64, 128]
    fields = {"suite": "recall", "rope.method": "own", "eval.split": "validation", "context.target": 0}
    config = assigned(small_config(texts), {**fields, "compare": (), "model.path": str(folder / "export")})
    measured = evaluate(config, tmp_path / "eval", "eval", reporter=Silent())["suites"]["recall"]["own"]
    for part in ("table", "grids"):
        assert measured[part] == records["after"][part]
    assert "## Recall" in (tmp_path / "eval/report.md").read_text()
