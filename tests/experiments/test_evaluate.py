"""The evaluate command: every suite of questions at tiny size, answers as transformers gives them, resumed, refused."""

import json
import shutil
import time

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from configs import eval as eval_config
from rope_jax.cli.evaluate import evaluate, job, rehearse
from rope_jax.cli.names import config_names
from rope_jax.cli.shell import Terminal
from rope_jax.commands.evaluate import prepare_evaluation, score_predictions
from rope_jax.commands.reporter import Silent
from rope_jax.data.byte_tokenizer import ByteTokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.benchmark import Questions
from rope_jax.evaluation.benchmarks import BENCHMARKS
from rope_jax.evaluation.longbench.sets import SETS
from rope_jax.evaluation.sample import from_json
from rope_jax.runs.folder import RunFolder
from tests.evaluation.babilong.babi import write as write_babi
from tests.experiments.helpers import run_evaluation, write_texts
from tests.interop.references import write_random_llama
from tests.processes import forked, output

LENGTHS = (1280, 2560)  # bytes; the second holds the smallest prompt of every task


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A random model that reads bytes, and a little of every data file."""
    folder = tmp_path_factory.mktemp("data")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    special = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": None}
    write_random_llama(folder / "model", vocab_size=258, max_position_embeddings=1280, **sizes, **special)
    ByteTokenizer().save(folder / "model")
    texts = write_texts(folder / "texts")
    (texts / "validation").rename(texts / "test")
    write_longbench(folder / "longbench")
    (folder / "babi").mkdir()
    write_babi(folder / "babi", "qa1")
    (folder / "books").mkdir()
    told = [f"In the year {year} a miller of the valley sold {year % 7} sacks of flour." for year in range(1700, 1890)]
    (folder / "books/book.txt").write_text(" ".join(told))
    (folder / "many_shot").mkdir()
    for name in ("train", "test"):
        lines = [json.dumps({"text": f"On {t} in {i}.", "label": t}) for t in ("ships", "bread") for i in range(20)]
        (folder / "many_shot" / f"{name}.jsonl").write_text("\n".join(lines))
    article = "The tower is very old. Its keeper reads many books. Nobody in town knows his name."
    asked = {"question": "What does the keeper read?", "answers": [{"text": "books"}], "is_impossible": False}
    squad = {"data": [{"paragraphs": [{"context": f"{article} {i}", "qas": [asked]} for i in range(9)]}]}
    (folder / "squad.json").write_text(json.dumps(squad))
    return folder


def write_longbench(folder):
    """A row of every set in every bucket, and templates."""
    folder.mkdir()
    answers = {"passage_retrieval_en": "Paragraph 3", "passage_count": "3", "trec": "Date"}
    for name in SETS:
        rows = [
            {
                "_id": f"{name}{words}",
                "context": f"It is said that nothing of the {name} was ever found again. " * 30,
                "input": "What was found?",
                "answers": [answers.get(name, "nothing at all")],
                "all_classes": ["Date", "Place"] if name == "trec" else None,
                "length": words,
            }
            for words in (1000, 5000, 9000)
        ]
        (folder / f"{name}_e.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "dataset2prompt.json").write_text(json.dumps(dict.fromkeys(SETS, "Read: {context}\n{input}\nAnswer:")))


def small_config(data, suite):
    config = eval_config.get_config()
    config.model.path = str(data / "model")
    config.suite = suite
    config.eval.lengths = LENGTHS
    config.eval.samples = 1
    config.eval.passkey_trials = 4
    config.eval.passkey_depths = 4
    config.eval.max_tokens = 6_000
    config.eval.position_tokens = 6_000
    config.eval.stride = 600
    config.data.path = str(data / "texts")
    # Rows spread over the session's eight virtual devices; cutting a model this small as well would take long.
    config.mesh.data, config.mesh.fsdp = -1, 1
    config.eval.longbench = str(data / "longbench")
    config.eval.longbench_max_length = 1000
    config.eval.essays = str(data / "books")
    config.eval.squad = str(data / "squad.json")
    config.eval.babilong = str(data / "babi")
    config.eval.books = str(data / "books")
    config.eval.many_shot = str(data / "many_shot")
    return config


QUESTIONS = "passkey,longbench_e,ruler,key_value,many_shot,babilong"
SUITES = {name: kind() for name, kind in BENCHMARKS.items() if issubclass(kind, Questions)}


def prepare(config, folder):
    with config_names():
        return prepare_evaluation(job(config, folder, "eval", Terminal()), RunFolder(folder), Terminal())


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """Every suite of questions, under the model's own scaling: folder and results."""
    folder = tmp_path_factory.mktemp("run") / "questions"
    return folder, evaluate(small_config(data, QUESTIONS), folder, "eval")


def samples_of(folder, suite):
    lines = [line for path in (folder / "samples" / suite).iterdir() for line in path.read_text().splitlines()[1:]]
    return {sample.id: sample for sample in map(from_json, map(json.loads, lines))}


def rows_of(folder, suite):
    lines = (folder / "predictions/own" / f"{suite}.jsonl").read_text().splitlines()[1:]
    return {row["id"]: row for row in map(json.loads, lines)}


@pytest.mark.slow
def test_answers_are_those_of_transformers(data, finished):
    """Greedy, batched, with stop strings: as `generate` of transformers prompt by prompt, cut by hand."""
    folder, _ = finished
    model = transformers.AutoModelForCausalLM.from_pretrained(data / "model")
    tokenizer = ByteTokenizer()
    chosen = {}
    for suite in SUITES:
        samples = samples_of(folder, suite)
        assert rows_of(folder, suite).keys() == samples.keys()
        chosen[suite, ""] = min(samples.values(), key=lambda s: (s.max_new_tokens, len(s.prompt)))
        # The one set with tokens that must come first.
        chosen |= {(suite, s.id): s for s in samples.values() if s.task == "samsum" and s.length == 0}
    assert len(chosen) == 7
    for (suite, _), sample in chosen.items():
        row = rows_of(folder, suite)[sample.id]
        ids = torch.tensor([[256, *tokenizer.encode(sample.prompt).tolist()]])
        ends = [257, 10] if sample.min_new_tokens else [257]
        with torch.no_grad():
            out = model.generate(
                ids,
                do_sample=False,
                max_new_tokens=sample.max_new_tokens,
                min_new_tokens=sample.min_new_tokens,
                eos_token_id=ends,
                pad_token_id=257,
            )
        new = out[0, ids.shape[1] :].tolist()
        if new[-1] in ends:
            new = new[:-1]
        text = tokenizer.decode(new)
        for string in () if sample.min_new_tokens else sample.stop:
            text = text.split(string)[0]
        assert row["prediction"] == text
        assert row["score"] == SUITES[suite].score(sample, text)


@pytest.mark.slow
def test_results_hold_every_suite(finished):
    folder, results = finished
    assert json.loads((folder / "results.json").read_text()) == results
    assert list(results["suites"]) == QUESTIONS.split(",")
    tables = {suite: methods["own"]["table"] for suite, methods in results["suites"].items()}
    assert set(tables["longbench_e"]) == {*SETS, "average"}
    assert list(tables["longbench_e"]["lcc"]) == ["0-4k", "4-8k", "8k+", "average"]
    assert all(
        cell["samples"] == 1 for row in tables["longbench_e"].values() for c, cell in row.items() if len(row) == 3
    )
    assert tables["passkey"]["passkey"]["1280"]["samples"] == 4
    assert tables["passkey"]["passkey"]["1280"]["interval"] is not None
    assert np.shape(results["suites"]["passkey"]["own"]["grids"]["passkey"]["mean"]) == (2, 4)
    # A task that was not run is named, and no average passes over it.
    assert tables["ruler"]["average"]["2560"]["mean"] is None
    assert tables["ruler"]["average of those run"]["2560"]["samples"] == 12
    reasons = {(m["suite"], m["task"], m["length"]): m["reason"] for m in results["not_run"]}
    assert "curl" in reasons["ruler", "qa_2", 0] and "config.eval.hotpotqa" in reasons["ruler", "qa_2", 0]
    assert "does not fit" in reasons["ruler", "cwe", 1280]
    assert "git clone" in reasons["babilong", "qa2", 0]


@pytest.mark.slow
def test_page_has_tables_and_pictures(finished):
    folder, _ = finished
    page = (folder / "report.md").read_text()
    for heading in ("Did short context suffer?", "Passkey retrieval", "LongBench-E", "RULER", "BABILong", "Not run"):
        assert f"## {heading}\n" in page
    assert "1,280 (original)" in page and "| qa_2 | - | not run |" in page
    assert "over the 12 tasks that were run, which is not the benchmark's average" in page
    pictures = [line.split("(")[1].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert set(pictures) == {f"plots/{name}.png" for name in ("score_by_length", "passkey", "ruler", "key_value")}
    for picture in pictures:
        with Image.open(folder / picture) as image:
            assert image.size[0] > 600


@pytest.mark.slow
def test_predictions_can_be_scored_on_their_own(finished, tmp_path):
    """The benchmark's own form of predictions gives the table again."""
    folder, results = finished
    score_predictions(folder / "predictions/own/longbench_e", tmp_path / "out", Silent())
    scored = json.loads((tmp_path / "out/results.json").read_text())["longbench_e"]
    table = results["suites"]["longbench_e"]["own"]["table"]
    assert set(scored) == set(SETS)
    for name, row in scored.items():
        for bucket, value in row.items():
            assert value == pytest.approx(table[name][bucket]["mean"], abs=0.005)  # rounded to two digits


def without_times(results):
    """Results apart from what differs between two runs of one evaluation."""
    kept = json.loads(json.dumps({k: v for k, v in results.items() if k not in ("seconds", "command")}))
    for methods in kept["suites"].values():
        for record in methods.values():
            record.pop("seconds", None)
    return kept


def answers(folder, suite):
    return {i: (row["prediction"], row["score"]) for i, row in rows_of(folder, suite).items()}


@pytest.mark.slow
def test_resumed_evaluation_equals_an_uninterrupted_one(data, finished, tmp_path):
    folder, results = finished
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    (again / "results.json").unlink()
    shutil.rmtree(again / "predictions/own/longbench_e")
    (again / "predictions/own/key_value.jsonl").unlink()
    for suite in ("ruler", "longbench_e"):
        path = again / "predictions/own" / f"{suite}.jsonl"
        content = path.read_bytes()
        # Within the text of a line, and not at the end of a batch.
        cut = content.index(b"\n", len(content) // 2) + 40
        path.write_bytes(content[:cut])
    resumed = evaluate(small_config(data, QUESTIONS), again, "eval")
    assert without_times(resumed) == without_times(results)
    for suite in SUITES:
        assert answers(again, suite) == answers(folder, suite)
        lines = (again / "predictions/own" / f"{suite}.jsonl").read_text().splitlines()[1:]
        assert len(lines) == len(rows_of(folder, suite))


@pytest.mark.slow
def test_texts_methods_and_later_suites(data, tmp_path, capsys):
    """Perplexity and LongPPL under two scale vectors; a later command adds a suite, and one vector has changed."""
    config = small_config(data, "perplexity,longppl")
    factors = tmp_path / "factors.json"
    factors.write_text(json.dumps([2.0] * 8))
    config.compare, config.rope.factors = ("explicit",), str(factors)
    config.eval.conventions = ("token", "longlora")
    config.eval.lengths = (640, 1280)
    config.eval.longppl_evaluator = str(data / "model")
    config.eval.longppl_context = 512
    results = evaluate(config, tmp_path / "run", "eval")
    for method in ("own", "explicit"):
        record = results["suites"]["perplexity"][method]
        assert set(record) == {"640 token", "640 longlora", "1280 token", "1280 longlora", "by_position"}
        # BOS makes the first token of each document scorable.
        assert record["1280 token"]["tokens"] == 6_000
        assert record["by_position"]["buckets"][-1]["end"] == 1280
        longppl = results["suites"]["longppl"][method]["longppl"]
        assert (longppl["documents"], longppl["tokens"]) == (2, 2 * 1279)
        # The first window of each document, which LongPPL reads, and all of them.
        assert longppl["perplexity"] == pytest.approx(record["1280 token"]["perplexity"], rel=0.05)
    differences = results["comparisons"]["suites"]["perplexity"]["explicit"]
    means = [np.log(results["suites"]["perplexity"][m]["1280 token"]["perplexity"]) for m in ("own", "explicit")]
    assert differences["1280 token"]["difference"] == pytest.approx(means[1] - means[0], abs=1e-9)
    assert list(differences["regions"]) == ["short", "long"]
    assert "NLL less that of own, nats per token" in capsys.readouterr().out
    page = (tmp_path / "run/report.md").read_text()
    assert "| explicit | longlora |" in page and "Points less" not in page and "## LongPPL" in page
    assert (tmp_path / "run/plots/perplexity_by_position.png").exists()

    config.suite = "passkey,perplexity"
    factors.write_text(json.dumps([1.0] * 8))
    later = evaluate(config, tmp_path / "run", "eval")
    assert list(later["suites"]["passkey"]) == ["own", "explicit"]
    before, after = results["suites"]["perplexity"], later["suites"]["perplexity"]
    assert after["own"] == before["own"]
    # The factors are now those of the model itself, and so is what is stated beside them.
    assert later["methods"]["explicit"] == later["methods"]["own"]
    own, old, new = before["own"], before["explicit"], after["explicit"]
    for window in ("640 token", "1280 longlora"):
        assert new[window]["perplexity"] == own[window]["perplexity"] != old[window]["perplexity"]
    compared = later["comparisons"]["suites"]
    assert compared["passkey"]["explicit"]["1280"] == {"difference": 0.0, "interval": [0.0, 0.0], "units": 4}
    assert {place["difference"] for place in compared["perplexity"]["explicit"]["by_position"]} == {0.0}


def test_a_dry_run_plans_every_benchmark_and_leaves_nothing(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rope_jax.commands.stages.speed", lambda setting, dtype: 1e9)
    monkeypatch.setattr("rope_jax.plan.minutes.WORTH_TIMING", 0)
    rehearse(small_config(data, "passkey,perplexity"), tmp_path / "out", "eval")
    said = capsys.readouterr().out
    assert "GiB for weights and cache" in said and "at 1 GFLOP/s" in said
    assert all(f"\n  {name} " in said for name in ("passkey", "perplexity"))
    assert not list(tmp_path.iterdir())


def test_a_run_directory_stands_for_its_export(data, tmp_path, capsys):
    shutil.copytree(data / "model", tmp_path / "run/export")
    (tmp_path / "run/methods").mkdir()
    config = small_config(data, "passkey")
    config.model.path = str(tmp_path / "run")
    assert job(config, tmp_path / "out", "eval", Terminal()).source == tmp_path / "run/export"
    assert "its export is evaluated" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "run/export")
    with pytest.raises(InputError, match="has not exported"):
        job(config, tmp_path / "out", "eval", Terminal())


def test_original_context_of_an_extended_model(data, tmp_path):
    shutil.copytree(data / "model", tmp_path / "yarn")
    path = tmp_path / "yarn/config.json"
    fields = json.loads(path.read_text())
    for key in ("rope_parameters", "rope_scaling"):
        fields.pop(key, None)
    scaling = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 640, "rope_theta": 10000.0}
    path.write_text(json.dumps({**fields, "rope_parameters": scaling}))
    config = small_config(data, "passkey")
    config.model.path = str(tmp_path / "yarn")
    config.eval.lengths = ()
    setting = job(config, tmp_path / "out", "eval", Terminal()).setting
    assert (setting.original, setting.lengths) == (640, (640, 1280))


@pytest.mark.parametrize(
    ("suite", "field", "message"),
    [
        ("longbench_e", "longbench", "hf download THUDM/LongBench"),
        ("babilong", "babilong", "git clone https://github.com/booydar/babilong"),
        ("babilong", "books", "gsutil"),
        ("many_shot", "many_shot", "curl -L -o"),
    ],
)
@pytest.mark.parametrize("value", ["", "/no/such/folder"])
def test_missing_files_are_named_with_the_command_that_gets_them(data, tmp_path, suite, field, message, value):
    config = small_config(data, suite)
    config.eval[field] = value
    with pytest.raises(InputError, match=r"none of config\.suite can be run") as error:
        evaluate(config, tmp_path / "run", "eval")
    assert message in str(error.value)
    assert (value or f"config.eval.{field} is empty") in str(error.value)
    # A corrected command may use the folder.
    assert not (tmp_path / "run/config.json").exists()


def test_unusable_requests(data, tmp_path):
    for suite, message in (("", "is empty"), ("passkeys", "has 'passkeys'")):
        with pytest.raises(InputError, match=message):
            prepare(small_config(data, suite), tmp_path)
    config = small_config(data, "passkey")
    config.rope.method = "learned"
    with pytest.raises(InputError, match="takes texts"):
        prepare(config, tmp_path)
    config = small_config(data, "passkey")
    config.eval.reference = "pi"
    with pytest.raises(InputError, match=r"config\.eval\.reference is 'pi': name one of the methods, own"):
        prepare(config, tmp_path)
    config.eval.reference, config.eval.generate_batch = "", 12
    with pytest.raises(InputError, match=r"config\.eval\.generate_batch"):
        prepare(config, tmp_path)
    # A backend that this machine lacks, and a method that nobody knows: evaluate alone offers the model's own scaling.
    for field, value, said in (("model.attention", "splash", "needs a tpu"), ("rope.method", "yam", "'own'")):
        config = small_config(data, "passkey")
        config[field.split(".")[0]][field.split(".")[1]] = value
        with pytest.raises(InputError, match=said) as error:
            prepare(config, tmp_path)
        assert error.value.field == f"config.{field}"


def test_longppl_is_not_measured_past_the_context_of_its_evaluator(data, tmp_path):
    config = small_config(data, "longppl")
    config.eval.longppl_evaluator = str(data / "model")
    with pytest.raises(InputError, match=r"reads 1280 tokens, and the texts .* take 2560 of its tokens") as error:
        prepare(config, tmp_path)
    assert "config.eval.longppl_evaluator" in str(error.value)


@pytest.mark.slow
def test_other_prompts_or_settings_are_refused(data, finished, tmp_path):
    folder, _ = finished
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    config = small_config(data, QUESTIONS)
    config.eval.samples = 2
    with pytest.raises(InputError, match=r"config\.eval\.samples is 2.*choose another --workdir"):
        evaluate(config, again, "eval")
    config = small_config(data, QUESTIONS)
    config.eval.essays = str(data / "texts" / "test")
    with pytest.raises(InputError, match="was made from"):
        prepare(config, again)
    # Smaller batches do fit.
    config = small_config(data, "key_value")
    config.eval.batch = 16
    prepare(config, again)


@pytest.mark.slow
def test_leaderboard_with_a_folder_of_questions(data, tmp_path):
    folder = tmp_path / "questions"
    for split in ("dev", "test"):
        (folder / "mmlu" / split).mkdir(parents=True)
        for subject in ("anatomy", "virology"):
            # U+0085 separates lines for Python, and stands in some of the real questions.
            lines = [f"What is\u0085{i}?,one,two,three,four,{'ABCD'[i % 4]}\n" for i in range(6)]
            (folder / "mmlu" / split / f"{subject}_{split}.csv").write_text("".join(lines), encoding="utf-8")
    targets = {kind: {"Yes.": 1, "No.": 0, "Never.": 0} for kind in ("mc1_targets", "mc2_targets")}
    (folder / "truthfulqa_mc_task.json").write_text(
        json.dumps([{"question": f"Is {i} odd?", **targets} for i in range(6)])
    )
    config = small_config(data, "leaderboard")
    config.eval.leaderboard = str(folder)
    config.eval.leaderboard_limit = 5
    results = evaluate(config, tmp_path / "run", "eval")
    scores = results["suites"]["leaderboard"]["own"]["scores"]
    assert set(scores) == {"mmlu", "truthfulqa_mc2"}
    assert scores["mmlu"]["tasks"] == 2 and scores["mmlu"]["shots"] == 5
    low, high = scores["mmlu"]["interval"]
    assert 0 <= low <= scores["mmlu"]["score"] <= high <= 100
    assert {m["task"] for m in results["not_run"]} == {"arc_challenge", "hellaswag"}
    assert "mmlu, 5-shot, acc" in (tmp_path / "run/report.md").read_text()


@pytest.mark.slow
def test_killed_evaluation_resumes(data, tmp_path):
    """kill -9 while it answers; the same command then ends with what an undisturbed one has."""
    fields = {
        "model.path": str(data / "model"),
        "suite": "passkey,key_value",
        "eval.lengths": LENGTHS[:1],
        "eval.samples": 16,
        "eval.passkey_trials": 8,
    }
    path = tmp_path / "killed/predictions/own/key_value.jsonl"
    with forked(run_evaluation, tmp_path / "killed", fields) as killed:
        while killed.is_alive() and not (path.exists() and path.stat().st_size > 0):
            time.sleep(0.01)
    assert not (tmp_path / "killed/results.json").exists()
    for name in ("killed", "whole"):
        with forked(run_evaluation, tmp_path / name, fields) as process:
            process.join()
            assert process.exitcode == 0
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "killed")]
    assert without_times(results[0]) == without_times(results[1])
    for suite in ("passkey", "key_value"):
        assert answers(tmp_path / "killed", suite) == answers(tmp_path / "whole", suite)


@pytest.mark.slow
def test_published_predictions_are_scored_from_the_command_line(shared, tmp_path):
    source, names = shared / "data/longbench_e_scored", ("trec", "passage_count")
    (tmp_path / "in").mkdir()
    for name in names:
        shutil.copy(source / f"{name}.jsonl", tmp_path / "in")
    output("-m", "experiments.evaluate", "--score", tmp_path / "in", "--workdir", tmp_path / "out")
    found = json.loads((tmp_path / "out/results.json").read_text())
    published = json.loads((source / "result.json").read_text())
    assert found == {"longbench_e": {name: published[name] for name in names}}
