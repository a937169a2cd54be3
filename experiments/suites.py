"""The benchmarks of questions and answers: what each asks, how it scores, and how its table is laid out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

from ml_collections import ConfigDict

from rope_jax.data.tokenizer import Tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.babilong.prompts import TASKS as BABILONG_TASKS
from rope_jax.evaluation.babilong.samples import babilong_samples, babilong_score
from rope_jax.evaluation.babilong.stories import BABI_COMMAND, read_books, read_stories
from rope_jax.evaluation.depths import found_depth, noted_depth
from rope_jax.evaluation.haystack import read_haystack
from rope_jax.evaluation.key_value import DEPTHS, key_value_samples, key_value_score
from rope_jax.evaluation.key_value import TASK as KEY_VALUE
from rope_jax.evaluation.longbench.prompts import load_prompts
from rope_jax.evaluation.longbench.rows import DOWNLOAD, read_rows
from rope_jax.evaluation.longbench.samples import longbench_samples, longbench_score
from rope_jax.evaluation.longbench.scoring import Scored, bucket_intervals
from rope_jax.evaluation.longbench.sets import BUCKETS, SETS, bucket
from rope_jax.evaluation.many_shot import TREC_COMMAND, many_shot_samples, many_shot_score, read_examples
from rope_jax.evaluation.passkey_samples import TASK as PASSKEY
from rope_jax.evaluation.passkey_samples import passkey_samples, passkey_score
from rope_jax.evaluation.ruler.questions import read_hotpotqa, read_squad
from rope_jax.evaluation.ruler.tasks import QUESTION_TASKS, Sources, not_run, ruler_samples, ruler_score
from rope_jax.evaluation.ruler.tasks import TASKS as RULER_TASKS
from rope_jax.evaluation.ruler.words import load_words
from rope_jax.evaluation.sample import Sample
from rope_jax.evaluation.scores import MeanScore, score_table

Table = dict[str, dict[str, MeanScore]]


@dataclasses.dataclass(frozen=True)
class Bench:
    """What samples are made for.

    Attributes:
        fields: `config.eval`.
        tokenizer: the model's.
        lengths: tokens of prompt and answer.
        seed: of all draws.
    """

    fields: ConfigDict
    tokenizer: Tokenizer
    lengths: tuple[int, ...]
    seed: int


@dataclasses.dataclass(frozen=True)
class Part:
    """Samples of one task at one length, not made yet.

    Attributes:
        task: name of the task.
        length: tokens; 0 for a task that has no length of its own.
        source: the files that the samples are made from; empty if they are generated.
        make: makes the samples; InputError if that cannot be done.
    """

    task: str
    length: int
    source: str
    make: Callable[[], Iterable[Sample]]


@dataclasses.dataclass(frozen=True)
class Suite:
    """A benchmark of questions and answers.

    Attributes:
        title: its name in reports.
        note: what a reader of its table must know.
        tasks: its tasks; without one of them there is no average.
        parts: what it asks.
        score: in [0, 1], of a sample and its prediction.
        table: from samples, scores by id, tasks and a seed.
        depth: of a sample's answer in its prompt; None for a benchmark without.
        bins: strata of depth, from `config.eval`.
    """

    title: str
    note: str
    tasks: tuple[str, ...]
    parts: Callable[[Bench], list[Part]]
    score: Callable[[Sample, str], float]
    table: Callable[[Sequence[Sample], Mapping[str, float], Sequence[str], int], Table] = score_table
    depth: Callable[[Sample], float | None] | None = None
    bins: Callable[[ConfigDict], int] = lambda fields: 10


def named(fields: ConfigDict, field: str, what: str, command: str) -> Path:
    """The path in a config field.

    Args:
        fields: `config.eval`.
        field: name of the field.
        what: what it names.
        command: what gets that.

    Returns:
        The path.

    Raises:
        InputError: if the field is empty.
    """
    if not fields[field]:
        raise InputError(f"config.eval.{field} is empty: name {what}. Get it with\n  {command}")
    return Path(fields[field]).expanduser()


def _passkey(bench: Bench) -> list[Part]:
    f = bench.fields
    return [
        Part(
            PASSKEY,
            length,
            "",
            partial(
                passkey_samples,
                bench.tokenizer,
                length,
                f.passkey_trials,
                bench.seed,
                f.passkey_depths,
                f.passkey_new_tokens,
            ),
        )
        for length in tuple(f.passkey_lengths) or bench.lengths
    ]


def _longbench(bench: Bench) -> list[Part]:
    f = bench.fields

    def make(name: str) -> list[Sample]:
        what = "the folder of LongBench-E (THUDM/LongBench on the Hugging Face hub)"
        folder = named(f, "longbench", what, DOWNLOAD.format(folder="FOLDER"))
        most = f.longbench_max_length or max(bench.lengths) - 500
        if most < 2:
            raise InputError(
                f"the prompts of LongBench-E would be cut to {most} tokens, the longest of config.eval.lengths less "
                "500: set config.eval.longbench_max_length"
            )
        rows = read_rows(folder, name)
        if f.longbench_rows:
            groups = {b: [row for row in rows if bucket(row["length"]) == b] for b, _ in BUCKETS}
            rows = [row for group in groups.values() for row in group[: f.longbench_rows]]
        return longbench_samples(name, rows, load_prompts(folder)[name], bench.tokenizer, most)

    return [Part(name, 0, f.longbench, partial(make, name)) for name in SETS]


def _longbench_table(
    samples: Sequence[Sample], scores: Mapping[str, float], tasks: Sequence[str], seed: int = 0
) -> Table:
    scored: dict[str, list[Scored]] = {task: [] for task in tasks}
    for sample in samples:
        scored[sample.task].append(Scored(sample.details["words"], scores[sample.id]))
    return bucket_intervals(scored, seed)


def _ruler(bench: Bench) -> list[Part]:
    f = bench.fields
    longest = max(bench.lengths)
    readers = {"essays": partial(read_haystack, max_words=longest), "squad": read_squad, "hotpotqa": read_hotpotqa}
    missing = not_run(Sources(words=load_words()))

    @cache
    def read(field: str):
        return readers[field](Path(f[field]).expanduser())

    def make(task: str, length: int) -> Iterable[Sample]:
        field = _ruler_field(task)
        sources = Sources(words=load_words())
        if field:
            if not f[field]:
                raise InputError(f"config.eval.{field} is empty: {missing[task]}")
            sources = dataclasses.replace(sources, **{field: read(field)})
        return ruler_samples(task, bench.tokenizer, length, f.samples, sources, bench.seed)

    def source(task: str) -> str:
        return f[_ruler_field(task)] if _ruler_field(task) else ""

    return [
        Part(task, length, source(task), partial(make, task, length))
        for task in RULER_TASKS
        for length in bench.lengths
    ]


def _ruler_field(task: str) -> str:
    """The field of config.eval with the file that a task of RULER needs; empty for none."""
    if task in QUESTION_TASKS:
        return {"qa_1": "squad", "qa_2": "hotpotqa"}[task]
    return "essays" if task in not_run(Sources(words=load_words())) else ""


def _key_value(bench: Bench) -> list[Part]:
    return [
        Part(
            KEY_VALUE, length, "", partial(key_value_samples, bench.tokenizer, length, bench.fields.samples, bench.seed)
        )
        for length in bench.lengths
    ]


def _many_shot(bench: Bench) -> list[Part]:
    f = bench.fields

    def make(length: int) -> Iterable[Sample]:
        command = TREC_COMMAND.format(path="FOLDER/train_5500.label", name="train_5500.label")
        folder = named(
            f, "many_shot", "the folder of TREC's question classification", f"{command}   # and TREC_10.label"
        )
        # Any other labelled texts come as .jsonl.
        own = (folder / "train.jsonl").is_file()
        train, test = ("train.jsonl", "test.jsonl") if own else ("train_5500.label", "TREC_10.label")
        shown, asked = read_examples(folder / train), read_examples(folder / test)
        known = {example.label for example in shown}
        # A class that only the test texts have cannot be learnt from the prompt.
        asked = [example for example in asked if example.label in known]
        return many_shot_samples("many_shot", shown, asked, bench.tokenizer, length, f.samples, bench.seed)

    return [Part("many_shot", length, f.many_shot, partial(make, length)) for length in bench.lengths]


def _babilong(bench: Bench) -> list[Part]:
    f = bench.fields

    @cache
    def books() -> tuple[str, ...]:
        command = "gsutil -m cp -r gs://deepmind-gutenberg/test FOLDER"
        return read_books(named(f, "books", "a folder of books (.txt), such as the test split of PG19", command))

    def make(task: str, length: int) -> Iterable[Sample]:
        folder = named(f, "babilong", "the folder of bAbI's stories", BABI_COMMAND.format(folder="FOLDER"))
        stories = read_stories(folder, task)
        return babilong_samples(task, stories, books(), bench.tokenizer, length, f.samples, bench.seed)

    source = ", ".join(filter(None, (f.babilong, f.books)))
    return [
        Part(task, length, source, partial(make, task, length)) for task in BABILONG_TASKS for length in bench.lengths
    ]


SUITES: Mapping[str, Suite] = {
    "passkey": Suite(
        "Passkey retrieval",
        "A five-digit key hidden in repeated filler; it is found if the first number in the greedy answer is the key.",
        (PASSKEY,),
        _passkey,
        passkey_score,
        depth=noted_depth,
        bins=lambda fields: fields.passkey_depths,
    ),
    "longbench_e": Suite(
        "LongBench-E",
        "Buckets by number of words; prompts longer than the window less 500 tokens lose their middle. The average is "
        "over the 13 sets, then over the buckets.",
        tuple(SETS),
        _longbench,
        longbench_score,
        table=_longbench_table,
    ),
    "ruler": Suite(
        "RULER",
        "Prompt and answer together fill the length. The average is over the 13 tasks.",
        tuple(RULER_TASKS),
        _ruler,
        ruler_score,
        depth=found_depth,
    ),
    "key_value": Suite(
        "JSON key-value recall",
        "A value is asked for out of a long JSON object of random keys.",
        (KEY_VALUE,),
        _key_value,
        key_value_score,
        depth=noted_depth,
        bins=lambda fields: DEPTHS,
    ),
    "many_shot": Suite(
        "Many-shot classification",
        "Classes learnt from as many examples as fit the prompt, with random numbers for labels.",
        ("many_shot",),
        _many_shot,
        many_shot_score,
    ),
    "babilong": Suite(
        "BABILong",
        "Facts scattered in a book, and a question on them.",
        tuple(BABILONG_TASKS),
        _babilong,
        babilong_score,
    ),
}
