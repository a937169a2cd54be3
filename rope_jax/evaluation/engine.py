"""The engine: prepares benchmarks, runs them on a model under a scale vector, resumes them and tabulates them."""

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from rope_jax.errors import InputError
from rope_jax.evaluation.answering import Prediction, answer_samples
from rope_jax.evaluation.benchmark import Benchmark, Measurement, Part, Questions, Setting, Subject
from rope_jax.evaluation.comparison import compare_scores
from rope_jax.evaluation.identity import digest, vector_digest
from rope_jax.evaluation.kept import Kept
from rope_jax.evaluation.sample import Sample, from_json
from rope_jax.evaluation.scores import average_of_run, depth_grids
from rope_jax.files import read_json_lines, write_text


@dataclasses.dataclass(frozen=True)
class Home:
    """Where an evaluation is kept, and how its user calls things.

    Attributes:
        folder: for samples, predictions and stages; None keeps nothing.
        names: by benchmark, argument to the user's name for it.
        claim: called before anything is written.
        say: told what was kept and is measured anew, and why.
    """

    folder: Path | None = None
    names: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    claim: Callable[[], None] = lambda: None
    say: Callable[[str], None] = lambda text: None

    def path(self, *parts: str) -> Path | None:
        """A path in the folder, None without one."""
        return self.folder and self.folder.joinpath(*parts)


@dataclasses.dataclass(frozen=True)
class NotRun:
    """A benchmark, task (empty: all) and length in tokens (0: all) that cannot be run, and why."""

    suite: str
    task: str
    length: int
    error: InputError

    @property
    def reason(self) -> str:
        """Why, and what helps."""
        return str(self.error)

    @property
    def what(self) -> str:
        """Benchmark, task and length in words."""
        task = f"{self.suite}, {self.task}" if self.task and self.task != self.suite else self.suite
        return f"{task} at {self.length:,} tokens" if self.length else task

    def to_json(self) -> dict:
        """The fields as results hold them."""
        return {"suite": self.suite, "task": self.task, "length": self.length, "reason": self.reason}


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Benchmarks that are ready to run: their checks have passed, their samples are made.

    Attributes:
        benchmarks: by name, those of which at least a part can be run.
        setting: what they share.
        home: where everything is kept.
        samples: by name of a benchmark of questions, what reads the samples of each part.
        not_run: what cannot be run.
    """

    benchmarks: Mapping[str, Benchmark]
    setting: Setting
    home: Home
    samples: Mapping[str, list[Callable[[], list[Sample]]]]
    not_run: tuple[NotRun, ...]

    def measure_shared(self) -> dict[str, dict[str, dict]]:
        """Measures what does not depend on the model: name of a benchmark to its shared records."""
        found = {}
        for name, benchmark in self.benchmarks.items():
            if isinstance(benchmark, Measurement) and (stages := benchmark.shared(self.setting)):
                kept = self._kept(benchmark.of(self.setting), "measured", f"{name}_shared.jsonl")
                found[name] = _measure_stages(stages, kept, self.setting.progress(f"{name}, whatever the model"))
        return found

    def run(self, name: str, subject: Subject, shared: Mapping[str, dict] | None = None) -> dict:
        """Runs the benchmark `name`, as far as an earlier attempt has not; `shared` are its records that need no model.

        Returns:
            For questions the `table` and `grids` of scores, the scores `by_sample`, the number of `samples`, and
            `seconds`; for a measurement its own result. JSON-able.
        """
        benchmark = self.benchmarks[name]
        if isinstance(benchmark, Questions):
            return self._scored(benchmark, *self.answers(name, subject))
        of = subject_identity(subject) | benchmark.of(self.setting)
        kept = self._kept(of, "measured", subject.name, f"{name}.jsonl")
        return benchmark.result(_measure_stages(benchmark.stages(subject, shared or {}), kept))

    def compare(self, name: str, results: Mapping[str, dict], reference: str) -> dict[str, dict]:
        """Paired differences of the benchmark `name` from the method `reference`, by method; empty without any."""
        benchmark, theirs = self.benchmarks[name], results[reference]
        found = {}
        for method, ours in results.items():
            if method == reference:
                continue
            if isinstance(benchmark, Questions):
                columns = ((sample, benchmark.column(sample)) for read in self.samples[name] for sample in read())
                found[method] = compare_scores(columns, ours["by_sample"], theirs["by_sample"], self.setting.seed)
            else:
                found[method] = benchmark.compare(ours, theirs, self.setting)
        return {method: differences for method, differences in found.items() if differences}

    def answers(self, name: str, subject: Subject) -> tuple[list[Sample], dict[str, Prediction]]:
        """Has a model answer the questions of the benchmark `name`: the samples, and predictions by sample id."""
        benchmark = self.benchmarks[name]
        assert isinstance(benchmark, Questions), f"{name} asks no questions"
        samples = [sample for read in self.samples[name] for sample in read()]
        kept = self._kept(subject_identity(subject), "predictions", subject.name, f"{name}.jsonl")
        predictions = answer_samples(samples, subject, benchmark.score, kept, f"{subject.name}, {name}".strip(", "))
        if kept.path:
            texts = {sample: prediction.prediction for sample, prediction in predictions.items()}
            for file, rows in benchmark.own_files(samples, texts).items():
                write_text(kept.path.with_suffix("") / file, "".join(json.dumps(row) + "\n" for row in rows))
        return samples, predictions

    def _scored(self, benchmark: Questions, samples: list[Sample], predictions: Mapping[str, Prediction]) -> dict:
        scores = {sample: prediction.score for sample, prediction in predictions.items()}
        table = average_of_run(benchmark.table(samples, scores, self.setting.seed))
        return {
            "table": {task: {c: dataclasses.asdict(cell) for c, cell in row.items()} for task, row in table.items()},
            "grids": depth_grids(samples, scores, benchmark.depth, benchmark.bins, self.setting.seed),
            "by_sample": scores,
            "samples": len(samples),
            "seconds": sum(prediction.seconds for prediction in predictions.values()),
        }

    def identity(self, subject: Subject) -> dict[str, str]:
        """Digests of all that the results of a subject depend on."""
        found = subject_identity(subject)
        for name, benchmark in self.benchmarks.items():
            if isinstance(benchmark, Questions):
                samples = [dataclasses.asdict(sample) for read in self.samples[name] for sample in read()]
                found[name] = digest(samples)
            else:
                found |= {f"{name} {part}": value for part, value in benchmark.of(self.setting).items()}
        return found

    def _kept(self, of: Mapping[str, str], *parts: str) -> Kept:
        return Kept(self.home.path(*parts), of, self.home.say)


def subject_identity(subject: Subject) -> dict[str, str]:
    """Digests of a model's weights and scale vector."""
    return {"vector": vector_digest(subject.rope, subject.setting.model.rope_base), "weights": subject.weights}


def prepare(benchmarks: Mapping[str, Benchmark], setting: Setting, home: Home = Home()) -> Evaluation:
    """Makes all samples, except for those that are at home, and checks all that needs no weights."""
    ready: dict[str, Benchmark] = {}
    samples: dict[str, list[Callable[[], list[Sample]]]] = {}
    not_run: list[NotRun] = []
    for name, benchmark in benchmarks.items():
        missing: list[NotRun] = []
        if isinstance(benchmark, Questions):
            samples[name], missing = _prepare_samples(name, benchmark, setting, home)
            runs = bool(samples[name])
        else:
            try:
                missing = [NotRun(name, task, 0, error) for task, error in benchmark.check(setting).items()]
                runs = True
            except InputError as error:
                missing, runs = [NotRun(name, "", 0, error)], False
        names = home.names.get(name, {})
        not_run += [dataclasses.replace(m, error=m.error.renamed(names)) for m in missing]
        if runs:
            ready[name] = benchmark
    return Evaluation(ready, setting, home, samples, tuple(not_run))


def _prepare_samples(
    name: str, benchmark: Questions, setting: Setting, home: Home
) -> tuple[list[Callable[[], list[Sample]]], list[NotRun]]:
    ready: list[Callable[[], list[Sample]]] = []
    running, missing = set(), []
    for part in setting.progress(f"samples of {name}")(benchmark.parts(setting)):
        path = home.path("samples", name, f"{part.task}-{part.length}.jsonl" if part.length else f"{part.task}.jsonl")
        if path and path.exists():
            _check_source(path, part)
        else:
            try:
                samples = list(_checked(benchmark, iter(part.make())))
            except InputError as error:
                missing.append(NotRun(name, part.task, part.length, error))
                continue
            if path:
                home.claim()
                lines = [{"source": part.source}, *map(dataclasses.asdict, samples)]
                write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        running.add(part.task)
        ready.append(partial(_read_samples, path) if path else partial(list, samples))
    return ready, _summed_up(missing, running)


def _check_source(path: Path, part: Part) -> None:
    source = next((line.get("source") for _, line in read_json_lines(path)), None)
    if source != part.source:
        raise InputError(
            f"{path} was made from {source or 'nothing'}, and now the config names {part.source or 'nothing'}: choose "
            "another `folder`, or delete that file to make it again"
        )


def _checked(benchmark: Questions, samples: Iterator[Sample]) -> Iterator[Sample]:
    first = next(samples)
    # Whatever scoring needs must be there before hours of predictions.
    benchmark.score(first, "")
    return itertools.chain([first], samples)


def _read_samples(path: Path) -> list[Sample]:
    try:
        return [from_json(fields) for _, fields in list(read_json_lines(path))[1:]]
    except (InputError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}): delete it, and the same command makes it again") from None


def _summed_up(missing: list[NotRun], running: set[str]) -> list[NotRun]:
    """One line where nothing of a benchmark, or of a task, can be run for one reason."""
    if missing and not running and len({m.reason for m in missing}) == 1:
        return [dataclasses.replace(missing[0], task="", length=0)]
    lines: dict[tuple, NotRun] = {}
    for m in missing:
        reasons = {other.reason for other in missing if other.task == m.task}
        line = dataclasses.replace(m, length=0) if len(reasons) == 1 and m.task not in running else m
        lines.setdefault((line.task, line.length, line.reason), line)
    return list(lines.values())


def _measure_stages(
    wanted: Mapping[str, Callable[[], dict]], kept: Kept, progress: Callable[[Iterable], Iterable] = iter
) -> dict[str, dict]:
    """Measures the stages that are not kept; gives all their records, with `seconds`."""
    found = kept.read()
    waiting = [name for name in wanted if name not in found]
    for name in progress(waiting) if waiting else ():
        began = time.monotonic()
        record = wanted[name]()
        found[name] = {**record, "seconds": time.monotonic() - began}
        kept.append({name: found[name]})
    return {name: found[name] for name in wanted}
