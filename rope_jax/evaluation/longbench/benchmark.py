"""The benchmark LongBench-E."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

from rope_jax.errors import InputError
from rope_jax.evaluation.benchmark import Part, Questions, Setting, Table
from rope_jax.evaluation.data_files import named_path
from rope_jax.evaluation.longbench.prompts import load_prompts
from rope_jax.evaluation.longbench.rows import DOWNLOAD, read_rows
from rope_jax.evaluation.longbench.samples import longbench_samples, longbench_score, prediction_row
from rope_jax.evaluation.longbench.scoring import Scored, bucket_intervals
from rope_jax.evaluation.longbench.sets import BUCKETS, SETS, bucket
from rope_jax.evaluation.sample import Sample


@dataclasses.dataclass(frozen=True)
class LongBench(Questions):
    """LongBench-E (Bai et al., arXiv 2308.14508).

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
                    "`lengths` less 500: set it",
                    field="max_length",
                )
            rows = read_rows(folder, name)
            if self.rows:
                groups = {b: [row for row in rows if bucket(row["length"]) == b] for b, _ in BUCKETS}
                rows = [row for group in groups.values() for row in group[: self.rows]]
            return longbench_samples(name, rows, load_prompts(folder)[name], setting.tokenizer, most)

        return [Part(name, 0, partial(make, name), self.folder) for name in SETS]

    def score(self, sample: Sample, prediction: str) -> float:
        return longbench_score(sample, prediction)

    def table(self, samples: Sequence[Sample], scores: Mapping[str, float], seed: int) -> Table:
        scored: dict[str, list[Scored]] = {task: [] for task in self.tasks}
        for sample in samples:
            scored[sample.task].append(Scored(sample.details["words"], scores[sample.id]))
        return bucket_intervals(scored, seed)

    def own_files(self, samples: Sequence[Sample], predictions: Mapping[str, str]) -> dict[str, list[dict]]:
        """The benchmark's prediction files, which its own scorer reads."""
        files: dict[str, list[dict]] = {}
        for sample in samples:
            files.setdefault(f"{sample.task}.jsonl", []).append(prediction_row(sample, predictions[sample.id]))
        return files
