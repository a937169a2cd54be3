"""Recall of facts of one token (`rope_jax.data.recall`), the retrieval that models of a million parameters learn."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from rope_jax.data.mixture import crop
from rope_jax.data.recall import Symbols, asked_at_the_end
from rope_jax.errors import InputError
from rope_jax.evaluation.benchmark import Measurement, Setting, Subject, check_positive
from rope_jax.evaluation.comparison import paired_difference
from rope_jax.evaluation.identity import digest
from rope_jax.evaluation.nll import make_continuation_scores
from rope_jax.evaluation.scores import MeanScore, mean_score
from rope_jax.sharding import row_sharding

# Raised when the same texts and settings give other results.
PROTOCOL = 1
# Tokens of a row to each fact in it, at least.
LEAST = 8


@dataclasses.dataclass(frozen=True)
class Recall(Measurement):
    """Recall of facts in a text, by their depth.

    Attributes:
        lengths: tokens of a text with its questions, BOS included; empty for those of the setting.
        texts: number of texts of each length; each has a fact for every key, in as many strata of depth.
    """

    title = "Recall"
    note = (
        "Facts of one token stand in a text, one in each stratum of depth, and its end asks for all of them; a fact is "
        "recalled if it is the most likely token after its question."
    )

    lengths: tuple[int, ...] = ()
    texts: int = 64

    def __post_init__(self):
        check_positive(self, "texts")

    def check(self, setting: Setting) -> dict[str, InputError]:
        symbols = setting.tokenizer.symbols
        if symbols is None:
            raise InputError(
                "the model cannot answer: its tokenizer has no tokens of synthetic recall, which only models have that "
                "were pre-trained with `pretrain.recall`, or by a study. Leave the benchmark out",
                field="suite",
            )
        shortest, longest = min(self._lengths(setting)), max(self._lengths(setting))
        if shortest < LEAST * symbols.keys:
            raise InputError(f"`lengths` has {shortest}, too few tokens: use at least {LEAST * symbols.keys}")
        if (found := sum(map(len, setting.texts.position))) < longest:
            raise InputError(f"`path` has {found} tokens for texts of {longest}: name more texts")
        return {}

    def of(self, setting: Setting) -> dict[str, str]:
        protocol = digest(PROTOCOL, self._lengths(setting), self.texts, setting.seed)
        return {"texts": setting.texts.digest, "protocol": protocol}

    def stages(self, subject: Subject, shared: Mapping[str, dict]) -> dict[str, Callable[[], dict]]:
        """Of every length `hits`, `[texts][keys]` from the first stratum of depth to the last."""
        return {str(length): partial(self._measure, subject, length) for length in self._lengths(subject.setting)}

    def result(self, records: Mapping[str, dict]) -> dict:
        """As results of questions: a `table` over texts, `grids` of depth over questions, scores `by_sample`."""
        scores = {length: np.mean(record["hits"], axis=1).tolist() for length, record in records.items()}
        rows = [[mean_score(hits) for hits in np.transpose(record["hits"])] for record in records.values()]
        fields = [field.name for field in dataclasses.fields(MeanScore)]
        grid = {
            "lengths": list(map(int, records)),
            "depths": ((np.arange(len(rows[0])) + 0.5) / len(rows[0])).tolist(),
            **{field: [[getattr(cell, field) for cell in row] for row in rows] for field in fields},
        }
        return {
            "table": {"recall": {length: dataclasses.asdict(mean_score(found)) for length, found in scores.items()}},
            "grids": {"recall": grid},
            "by_sample": scores,
            "samples": sum(map(len, scores.values())),
            "seconds": sum(record["seconds"] for record in records.values()),
        }

    def compare(self, records: Mapping[str, dict], reference: Mapping[str, dict], setting: Setting) -> dict:
        found = {}
        for length, ours in records["by_sample"].items():
            ours, theirs = (100 * np.asarray(values) for values in (ours, reference["by_sample"][length]))
            found[length] = paired_difference(ours, theirs, np.ones(len(ours)), setting.seed).to_json()
        return found

    def _lengths(self, setting: Setting) -> tuple[int, ...]:
        return self.lengths or setting.lengths

    def _measure(self, subject: Subject, length: int) -> dict:
        setting = subject.setting
        assert setting.tokenizer.symbols, "checked"
        rows, depths = recall_rows(setting, setting.tokenizer.symbols, length, self.texts)
        score = make_continuation_scores(setting.model, setting.chunk, row_sharding(setting.mesh))
        # The last batch has the shape of the others.
        padded = np.resize(rows, (-(-self.texts // setting.batch) * setting.batch, length))
        asked = 2 * depths.shape[1]
        targets = np.full((len(padded), asked), -1, np.int32)
        targets[:, ::2] = padded[:, 1 - asked :: 2]
        first, hits = np.zeros(setting.batch, np.int32), []
        for start in setting.progress(f"recall at {length}")(range(0, len(padded), setting.batch)):
            part = slice(start, start + setting.batch)
            hits.append(np.asarray(score(subject.params, subject.rope, padded[part], first, targets[part])[1]))
        found = np.concatenate(hits)[: self.texts, ::2]
        return {"hits": np.take_along_axis(found, np.argsort(depths, axis=1), axis=1).astype(int).tolist()}


def recall_rows(setting: Setting, symbols: Symbols, length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts that end with a question for every key and its answer.

    Returns:
        Tokens int32 `[count, length]`, and int `[count, keys]` the place of each fact, in the order of the questions.
    """
    bos = setting.tokenizer.bos_id
    head = np.array([] if bos is None else [bos], np.int32)
    rng, text = np.random.default_rng((setting.seed, length)), np.concatenate(setting.texts.position)
    drawn = [asked_at_the_end(rng, crop(rng, text, length - len(head)), symbols, symbols.keys)[0] for _ in range(count)]
    tokens = np.stack([np.concatenate([head, recall.tokens]) for recall in drawn]).astype(np.int32)
    answers = np.arange(length - 2 * symbols.keys + 1, length, 2)
    return tokens, answers - np.stack([recall.distances[1 - 2 * symbols.keys :: 2] for recall in drawn])
