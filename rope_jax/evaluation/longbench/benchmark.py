"""LongBench-E (Bai et al., arXiv 2308.14508): its rows as questions, truncated in the middle."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from rope_jax.data.tokenizer import Tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.answering import with_bos
from rope_jax.evaluation.benchmark import Part, Questions, Setting, Table
from rope_jax.evaluation.data_files import named_path
from rope_jax.evaluation.longbench.prompts import load_prompts
from rope_jax.evaluation.longbench.rows import DOWNLOAD, read_rows
from rope_jax.evaluation.longbench.scoring import Scored, bucket_intervals, score_prediction
from rope_jax.evaluation.longbench.sets import BUCKETS, SETS, bucket
from rope_jax.evaluation.sample import Sample


@dataclasses.dataclass(frozen=True)
class LongBench(Questions):
    """LongBench-E.

    Attributes:
        folder: folder of its files.
        rows: rows of each set and bucket; 0: all.
        max_length: tokens of a prompt; 0: the longest length less 500.
    """

    title = "LongBench-E"
    note = (
        "Buckets by number of words; prompts longer than the window less 500 tokens lose their middle. The average is "
        "over the 13 sets, then over the buckets."
    )
    tasks = tuple(SETS)

    folder: str = ""
    rows: int = 0
    max_length: int = 0

    def parts(self, setting: Setting) -> list[Part]:
        def make(name: str) -> list[Sample]:
            what = "the folder of LongBench-E (THUDM/LongBench on the Hugging Face hub)"
            folder = named_path(self, "folder", what, DOWNLOAD.format(folder="FOLDER"))
            most = self.max_length or max(setting.lengths) - 500
            if most < 2:
                raise InputError(
                    f"`max_length` is {self.max_length} and would cut prompts to {most} tokens, the longest of "
                    "`lengths` less 500: set it"
                )
            rows = read_rows(folder, name)
            if self.rows:
                groups = [[row for row in rows if bucket(row["length"]) == name] for name in BUCKETS]
                rows = [row for group in groups for row in group[: self.rows]]
            return longbench_samples(name, rows, load_prompts(folder)[name], setting.tokenizer, most)

        return [Part(name, 0, partial(make, name), self.folder) for name in SETS]

    def score(self, sample: Sample, prediction: str) -> float:
        return score_prediction(sample.task, prediction, sample.references, sample.details["classes"])

    def column(self, sample: Sample) -> str:
        return sample.details["bucket"]

    def table(self, samples: Sequence[Sample], scores: Mapping[str, float], seed: int) -> Table:
        scored: dict[str, list[Scored]] = {task: [] for task in self.tasks}
        for sample in samples:
            scored[sample.task].append(Scored(sample.details["words"], scores[sample.id]))
        return bucket_intervals(scored, seed)

    def own_files(self, samples: Sequence[Sample], predictions: Mapping[str, str]) -> dict[str, list[dict]]:
        """The benchmark's prediction files, which its own scorer reads."""
        files: dict[str, list[dict]] = {}
        for sample in samples:
            row = {
                "id": sample.id,
                "pred": predictions[sample.id],
                "answers": list(sample.references),
                "all_classes": list(sample.details["classes"]) or None,
                "length": sample.details["words"],
            }
            files.setdefault(f"{sample.task}.jsonl", []).append(row)
        return files


def truncate_middle(tokenizer: Tokenizer, text: str, max_length: int) -> str:
    """Cuts the middle out of a prompt of more than `max_length` tokens, BOS included.

    What is left are the texts of its first and last `max_length // 2` ids, where the first half counts BOS. Tokenised
    again it may have a few more or fewer tokens, as in the benchmark.
    """
    ids = with_bos(tokenizer, text)
    if len(ids) <= max_length:
        return text
    half = max_length // 2
    return tokenizer.decode(ids[:half]) + tokenizer.decode(ids[len(ids) - half :])


def longbench_samples(
    name: str, rows: Iterable[Mapping[str, Any]], template: str, tokenizer: Tokenizer, max_length: int
) -> list[Sample]:
    """A sample for each row of a set; `details` holds `words`, the row's length, its `bucket`, and `classes`."""
    kind = SETS[name]
    return [
        Sample(
            id=f"{name}/{row['_id']}",
            task=name,
            prompt=truncate_middle(tokenizer, template.format(context=row["context"], input=row["input"]), max_length),
            references=tuple(row["answers"]),
            max_new_tokens=kind.max_new_tokens,
            length=BUCKETS[bucket(row["length"])],
            stop=kind.stop,
            min_new_tokens=kind.min_new_tokens,
            details={
                "words": row["length"],
                "bucket": bucket(row["length"]),
                "classes": list(row.get("all_classes") or []),
            },
        )
        for row in rows
    ]
