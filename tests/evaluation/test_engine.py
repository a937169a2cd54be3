"""The engine on a benchmark of each kind in a few lines: samples, answers, resuming, refusals, tables."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.benchmark import Measurement, Part, Questions, Setting, Subject
from rope_jax.evaluation.engine import Home, prepare
from rope_jax.evaluation.passkey import Passkey
from rope_jax.evaluation.perplexity.benchmark import PerplexityBenchmark
from rope_jax.evaluation.record import stage_record
from rope_jax.evaluation.sample import Sample
from rope_jax.evaluation.texts import Texts
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector
from rope_jax.sharding import make_mesh

MODEL = LlamaConfig(258, 32, 48, 1, 2, 2, 16, context=64)
BYTES = load_tokenizer("bytes")
ROPE = ScaleVector.create(np.ones(8))


@dataclasses.dataclass(frozen=True)
class Echo(Questions):
    """Asks for the last word."""

    title = "Echo"
    note = "The last word is asked for."
    tasks = ("echo", "other")

    source: str = ""
    count: int = 3

    def parts(self, setting):
        def make(task, length):
            if task == "other":
                raise InputError("`source` is empty: name a file", field="source")
            return (
                Sample(f"{task}/{length}/{i}", task, f"word{i}", (f"word{i}",), 5, length) for i in range(self.count)
            )

        return [Part(t, n, lambda t=t, n=n: make(t, n), self.source) for t in self.tasks for n in setting.lengths]

    def score(self, sample, prediction):
        return float(prediction == sample.references[0])


@dataclasses.dataclass(frozen=True)
class Count(Measurement):
    """Counts how often it measures."""

    calls: list
    text: str = "a"

    def of(self, setting):
        return {"text": self.text}

    def shared(self, setting):
        return {"key": lambda: {"value": self.calls.append("key") or 7}}

    def stages(self, subject, shared):
        def measure(name):
            self.calls.append(name)
            return {"value": shared["key"]["value"]}

        return {name: lambda name=name: measure(name) for name in ("one", "two")}


class FakeSubject(Subject):
    """Echoes prompts, and finds all tokens equally likely."""

    @property
    def score(self):
        return lambda tokens, wanted: np.where(wanted, np.log(258), 0.0)

    @property
    def generate(self):
        def batches(prompts, limits, *, stops, batch_size, progress):
            for start in progress(range(0, len(prompts), batch_size)):
                rows = range(start, min(start + batch_size, len(prompts)))
                yield [(i, prompts[i][-limits[i] :]) for i in rows]

        return batches


@pytest.fixture(scope="module")
def setting():
    documents = [np.arange(200, dtype=np.int32) % 250] * 2
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    texts = Texts(documents, [200, 200], documents)
    return Setting(MODEL, BYTES, mesh, 300, (300, 600), lambda: dataclasses.replace(texts, position=[documents[0]] * 4))


def test_questions_are_asked_scored_and_resumed(setting, tmp_path):
    claimed = []
    home = Home(tmp_path, {"echo": {"source": "config.eval.echo"}}, lambda: claimed.append(1))
    evaluation = prepare({"echo": Echo()}, setting, home)
    assert len(claimed) == 2
    (missing,) = evaluation.not_run
    assert (missing.what, missing.error.field) == ("echo, other", "config.eval.echo")
    assert missing.to_json()["reason"] == "config.eval.echo is empty: name a file"
    subject = FakeSubject(setting, None, ROPE, "own")
    record = evaluation.run("echo", subject)
    assert record["samples"] == 6 and record["grids"] == {}
    assert record["table"]["echo"]["300"]["mean"] == 100
    # No average passes over a task that was not run.
    assert record["table"]["average"]["600"]["mean"] is None
    assert record["table"]["average of those run"]["600"]["samples"] == 3
    path = tmp_path / "predictions/own/echo.jsonl"
    lines = path.read_text()
    path.write_text(lines[: len(lines) // 2])
    again = prepare({"echo": Echo()}, setting, home)
    assert again.run("echo", subject)["table"] == record["table"] and len(claimed) == 2
    assert [json.loads(line) for line in path.read_text().splitlines()[:2]] == [
        json.loads(line) for line in lines.splitlines()[:2]
    ]
    assert len(path.read_text().splitlines()) == len(lines.splitlines())
    with pytest.raises(InputError, match="was made from nothing, and now the config names file"):
        prepare({"echo": Echo(source="file")}, setting, home)
    samples = tmp_path / "samples/echo/echo-300.jsonl"
    whole = samples.read_text()
    for content in (whole[:-9], whole + "{}\n", whole + "[" * 100_000):
        samples.write_text(content)
        with pytest.raises(InputError, match=r"echo-300\.jsonl is damaged .*: delete it, and the same command"):
            prepare({"echo": Echo()}, setting, home).run("echo", subject)


def test_measurements_resume_stage_by_stage(setting, tmp_path):
    calls = []
    evaluation = prepare({"count": Count(calls)}, setting, Home(tmp_path))
    subject = Subject(setting, None, ROPE, "own")
    for _ in range(2):
        record = evaluation.run("count", subject, evaluation.measure_shared()["count"])
        assert calls == ["key", "one", "two"]
    assert [record[name]["value"] for name in ("one", "two")] == [7, 7]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"rope": ScaleVector.create(np.full(8, 2.0))}, "vector"),
        ({"rope": ScaleVector.create(np.ones(8), 1.1)}, "vector"),
        ({"weights": "others"}, "weights"),
        ({}, "text"),
    ],
)
def test_what_is_kept_of_something_else_is_measured_anew(setting, tmp_path, change, part):
    """A vector, weights or texts that changed under the same name: nothing old is shown as theirs."""
    calls, said = [], []
    home = Home(tmp_path, say=said.append)
    subject = FakeSubject(setting, None, ROPE, "explicit", "weights")
    evaluation = prepare({"count": Count(calls), "echo": Echo()}, setting, home)
    evaluation.run("count", subject, {"key": {"value": 7}})
    evaluation.run("echo", subject)
    other = prepare({"count": Count(calls, "b" if part == "text" else "a"), "echo": Echo()}, setting, home)
    changed = dataclasses.replace(subject, **change)
    assert other.run("count", changed, {"key": {"value": 8}})["one"]["value"] == 8
    assert calls == ["one", "two"] * 2 and f"count.jsonl is of another {part}: measured anew" in said[0]
    other.run("echo", changed)
    # Answers depend on no texts.
    assert len(said) == (1 if part == "text" else 2)
    assert (tmp_path / "measured/explicit/count.old1.jsonl").exists()


def test_nothing_is_kept_without_a_folder(setting, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = []
    evaluation = prepare({"echo": Echo(), "count": Count(calls)}, setting)
    subject = FakeSubject(setting, None, ROPE)
    assert evaluation.run("echo", subject)["table"]["echo"]["300"]["mean"] == 100
    evaluation.run("count", subject, evaluation.measure_shared()["count"])
    assert calls == ["key", "one", "two"] and not list(tmp_path.iterdir())


def test_a_stage_of_a_run_holds_perplexities_and_a_grid_of_retrieval(setting):
    wide = dataclasses.replace(setting, lengths=(64, 128))
    wanted = {"perplexity": PerplexityBenchmark(16, ("token",)), "passkey": Passkey((600, 700), 8, 4)}
    record = json.loads(json.dumps(stage_record(prepare(wanted, wide), FakeSubject(wide, None, ROPE))))
    assert list(record) == ["perplexity", "by_position", "passkey", "recall"]
    assert list(record["perplexity"]) == ["64", "128"]
    assert record["perplexity"]["64"]["perplexity"] == pytest.approx(258, rel=1e-5)
    assert record["by_position"]["buckets"][-1]["end"] == 128
    grid = record["passkey"]
    assert grid["lengths"] == [600, 700] and np.shape(grid["cells"]) == (2, 4) and len(grid["trials"]) == 16
    assert [rate["successes"] for rate in grid["per_length"]] == [0, 0]
    without = prepare({"perplexity": wanted["perplexity"]}, wide)
    record = stage_record(without, FakeSubject(wide, None, ROPE))
    assert record["passkey"] is record["recall"] is None


@pytest.mark.parametrize(("field", "value"), [("batch", 0), ("generate_batch", 0), ("chunk", 0), ("lengths", (1, 8))])
def test_shared_numbers_are_checked(setting, field, value):
    with pytest.raises(InputError) as error:
        dataclasses.replace(setting, **{field: value})
    assert error.value.field == field
