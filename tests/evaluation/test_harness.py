"""The lm_eval adapter against lm_eval's own `hf` model, on a real model and real questions."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.benchmark import Setting, Subject
from rope_jax.evaluation.leaderboard.benchmark import LEADERBOARD, harness_tasks, leaderboard_scores, read_questions
from rope_jax.interop.huggingface import read_model
from rope_jax.sharding import make_mesh
from tests.interop.stories import write_stories260k

lm_eval = pytest.importorskip("lm_eval", reason="extra [eval] is not installed")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from rope_jax.evaluation.leaderboard.harness import HarnessModel  # noqa: E402

SUBJECTS = ("anatomy", "high_school_geography", "moral_disputes")


@pytest.fixture(scope="module")
def folder(shared, tmp_path_factory):
    return write_stories260k(shared / "data", tmp_path_factory.mktemp("stories260k"))


@pytest.fixture(scope="module")
def ours(folder):
    model = read_model(folder)
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    setting = Setting(model.config, load_tokenizer(folder), mesh, 512, (512,), lambda: None, batch=4)
    return HarnessModel(Subject(setting, model.params, model.rope))


@pytest.fixture(scope="module")
def theirs(folder):
    # BOS in front, as the tokenizer's own post-processor has it.
    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4, add_bos_token=True)


def instances(kind, arguments):
    return [Instance(kind, {}, pair, i) for i, pair in enumerate(arguments)]


CONTEXTS = [
    ("Once upon a time, there was", " a little girl"),
    ("Once upon a time, there was", " a dog"),
    ("Once", " upon"),
    ("", "Tim had a red ball."),
    ("The end. ", "Yes"),
    ("Lily said " * 200, "hello to the big dog"),  # longer than the context of 512 tokens
]


def test_loglikelihoods_are_those_of_hf(ours, theirs):
    requests = instances("loglikelihood", CONTEXTS)
    got, want = ours.loglikelihood(requests), theirs.loglikelihood(requests)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in want]
    # Two float32 implementations; sums over at most 20 tokens of values to 10.
    np.testing.assert_allclose([x for x, _ in got], [x for x, _ in want], rtol=1e-5, atol=1e-4)


def test_rolling_loglikelihoods_are_those_of_hf(ours, theirs):
    texts = [("Lily went to the park.",), ("The cat sat on the mat and saw a bird. " * 80,)]
    requests = instances("loglikelihood_rolling", texts)
    np.testing.assert_allclose(
        ours.loglikelihood_rolling(requests), theirs.loglikelihood_rolling(requests), rtol=1e-5, atol=1e-3
    )


def test_texts_are_those_of_hf(ours, theirs):
    first = {"until": ["."], "max_gen_toks": 60}
    second = {"until": ["\n", "little girl"], "do_sample": False, "max_gen_toks": 20}
    requests = instances(
        "generate_until",
        [("Once upon a time", first), ("Tim had a big dog. He", first), ("Once upon a time", second), ("Lily", second)],
    )
    assert ours.generate_until(requests) == theirs.generate_until(requests)


def test_sampling_is_refused(ours):
    with pytest.raises(InputError, match="do_sample"):
        ours.generate_until(instances("generate_until", [("a", {"do_sample": True, "temperature": 1.0})]))
    with pytest.raises(InputError, match="max_gen_toks"):
        ours.generate_until(instances("generate_until", [("a", {"max_gen_toks": 600})]))


def evaluate(model, shared, limit):
    # ARC without worked examples, for which there is no file; MMLU with as many as the context of 512 tokens holds.
    shots = {"arc_challenge": 0, "truthfulqa_mc2": 0, "mmlu": 2}
    tasks = [dataclasses.replace(task, shots=shots[task.name]) for task in LEADERBOARD if task.name in shots]
    group = harness_tasks(shared / "data" / "leaderboard", tasks, SUBJECTS)
    return lm_eval.simple_evaluate(model, tasks=[group], limit=limit, bootstrap_iters=0, log_samples=False)["results"]


def compare(ours, theirs, shared, limit):
    got, want = evaluate(ours, shared, limit), evaluate(theirs, shared, limit)
    assert got.keys() == want.keys()
    names = ["arc_challenge", "truthfulqa_mc2", *(f"mmlu_{subject}" for subject in SUBJECTS)]
    for name in names:
        assert "acc,none" in want[name]
        for metric in ("acc,none", "acc_norm,none"):
            if metric in want[name]:
                # To the digit that lm_eval prints.
                assert f"{got[name][metric]:.4f}" == f"{want[name][metric]:.4f}", (name, metric)


@pytest.mark.slow
def test_scores_are_those_of_hf_on_the_first_questions(ours, theirs, shared):
    compare(ours, theirs, shared, 2)


def test_every_task_reads_its_own_files(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    for name, missing in (
        ("arc_challenge", "arc_challenge_test.jsonl"),
        ("hellaswag", "hellaswag_val.jsonl"),
        ("truthfulqa_mc2", "truthfulqa_mc_task.json"),
        ("mmlu_anatomy", "anatomy_test.csv"),
    ):
        with pytest.raises(InputError, match=f"{missing} is missing: it comes from http"):
            read_questions(tmp_path, name, 5)
    arc = {"query": "Question: Why?", "choices": ["x", "y"], "gold": 1}
    write("arc_challenge_test.jsonl", json.dumps(arc))
    with pytest.raises(InputError, match=r"arc_challenge_train\.jsonl is missing"):
        read_questions(tmp_path, "arc_challenge", 25)
    choices = {"text": ["x", "y"], "label": ["A", "B"]}
    (row,) = read_questions(tmp_path, "arc_challenge", 0)["test"]
    assert row == {"question": "Why?", "choices": choices, "answerKey": "B"}
    hellaswag = {"ctx_a": "a", "ctx_b": "b", "activity_label": "c", "endings": ["1", "2", "3", "4"], "label": 2}
    write("hellaswag_val.jsonl", json.dumps(hellaswag) + "\n")
    assert read_questions(tmp_path, "hellaswag", 0) == {"validation": [hellaswag]}
    write("mmlu/test/anatomy_test.csv", '"Which, ""a"" or b?",1,2,3,4,C\n"two\nlines",1,2,3,4,0\n')
    write("mmlu/dev/anatomy_dev.csv", "question,choice0,choice1,choice2,choice3,answer\nWhy?,1,2,3,4,3\n")
    questions = read_questions(tmp_path, "mmlu_anatomy", 5)
    assert [row["answer"] for row in questions["test"]] == [2, 0]
    assert questions["test"][1]["question"] == "two\nlines"
    assert questions["dev"] == [{"question": "Why?", "choices": ["1", "2", "3", "4"], "answer": 3}]
    write("mmlu/test/anatomy_test.csv", "Why?,1,2,3\n")
    with pytest.raises(InputError, match="question 0 has not 4 choices"):
        read_questions(tmp_path, "mmlu_anatomy", 5)
    write("mmlu/test/anatomy_test.csv", "x" * 200_000)
    with pytest.raises(InputError, match=r"anatomy_test\.csv is not CSV"):
        read_questions(tmp_path, "mmlu_anatomy", 5)
    for content in ("[", "[" * 100_000, "7", "[7]", '[{"question": "?", "mc1_targets": {}}]', '["\\ud800"]'):
        write("truthfulqa_mc_task.json", content)
        with pytest.raises(InputError, match=r"truthfulqa_mc_task\.json (is not valid JSON|has not the fields)"):
            read_questions(tmp_path, "truthfulqa_mc2", 0)
    write("arc_challenge_test.jsonl", '{"query": "?", "choices": ["a"], "gold": 3}\n')
    with pytest.raises(InputError, match=r"arc_challenge_test\.jsonl has not the fields"):
        read_questions(tmp_path, "arc_challenge", 0)


@pytest.mark.slow
def test_the_hub_needs_no_folder():
    tasks = harness_tasks()["task"]
    assert len(tasks) == 57 + 3
    assert {"task": "arc_challenge", "num_fewshot": 25} in tasks
    assert {"task": "mmlu_anatomy", "num_fewshot": 5} in tasks


def test_columns_of_the_leaderboard():
    results = {
        "mmlu_anatomy": {"acc,none": 0.5, "acc_stderr,none": 0.03},
        "mmlu_virology": {"acc,none": 0.25, "acc_stderr,none": 0.04},
        "arc_challenge": {"acc,none": 0.1, "acc_norm,none": 0.3, "acc_norm_stderr,none": 0.01},
    }
    scores = leaderboard_scores(results)
    assert scores.keys() == {"mmlu", "arc_challenge"}
    assert scores["arc_challenge"]["score"] == pytest.approx(30)
    assert scores["mmlu"]["score"] == pytest.approx(37.5)
    assert scores["mmlu"]["standard_error"] == pytest.approx(100 * np.hypot(0.03, 0.04) / 2)
