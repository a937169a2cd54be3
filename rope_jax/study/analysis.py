"""What the table of a study says: comparisons with a reference, and what predicts quality."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rope_jax.study.design import LEARNED, STAGES, ZERO_SHOT
from rope_jax.study.probes import ratio
from rope_jax.study.statistics import Difference, RankCorrelation, paired_differences, rank_correlation

REFERENCE = "yarn"
# Of the two-term cost, the weight of unseen angles against changed distances.
UNSEEN_WEIGHT = 30.0

Line = Mapping[str, Any]
Group = tuple[str, int]


@dataclasses.dataclass(frozen=True)
class Quality:
    """A measure of a vector: a number for each unit (document or row) of a measurement, less being better.

    `beyond` tells whether it is about what lies beyond the original context.
    """

    title: str
    of: Callable[[Line], np.ndarray]
    beyond: bool = True


def _documents(*columns: int) -> Callable[[Line], np.ndarray]:
    return lambda line: np.asarray(line["documents"], np.float64)[:, list(columns)].mean(axis=1)


def _paired_context(line: Line) -> np.ndarray:
    return ratio(line["asked"], "nll")[:, 1] - ratio(line["asked"], "without")[:, 1]


QUALITIES: Mapping[str, Quality] = {
    "beyond": Quality("NLL beyond L", _documents(2)),
    "last": Quality("NLL, last quarter", _documents(3)),
    "short": Quality("NLL below L", _documents(0, 1), beyond=False),
    "recall": Quality("recall NLL beyond L", lambda line: ratio(line["facts"], "nll")[:, 1]),
    "paired": Quality("paired context beyond L", _paired_context),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """The lines of a table, found by what they are about."""

    lines: Sequence[Line]

    @property
    def about(self) -> Line:
        return next(line for line in self.lines if line["kind"] == "study")

    def models(self, group: Group | None = None) -> list[Line]:
        models = [line for line in self.lines if line["kind"] == "model"]
        return [line for line in models if group in (None, (line["shape"], line["context"]))]

    @property
    def groups(self) -> list[Group]:
        """Shapes and contexts that have a model."""
        return list(dict.fromkeys((line["shape"], line["context"]) for line in self.models()))

    @property
    def extensions(self) -> list[int]:
        return sorted({line["extension"] for line in self.lines if line["kind"] == "measured"})

    def measured(self, extension: int, stage: str, group: Group | None = None) -> dict[str, list[Line]]:
        """Vector to its measurements, one per model; only vectors and models that are complete.

        A model counts if the reference was measured with it; a vector, if all those models were measured with it.
        """
        found: dict[str, dict[tuple, Line]] = {}
        for line in self.lines:
            if line["kind"] != "measured" or (line["extension"], line["stage"]) != (extension, stage):
                continue
            if group in (None, (line["shape"], line["context"])):
                model = line["shape"], line["context"], line["seed"]
                found.setdefault(line["vector"], {})[model] = line
        models = self._finished(found)
        return {
            name: [by_model[model] for model in models]
            for name, by_model in found.items()
            if models and all(model in by_model for model in models)
        }

    def _finished(self, found: Mapping[str, Mapping[tuple, Line]]) -> list[tuple]:
        """The models with as many measurements as the most complete ones have."""
        counts = {model: sum(model in by_model for by_model in found.values()) for model in found.get(REFERENCE, {})}
        most = max(counts.values(), default=0)
        return [model for model, count in counts.items() if count == most]

    def vector(self, context: int, extension: int, name: str) -> Line | None:
        """A vector that is the same for all models."""
        wanted = ("vector", context, extension, name)
        keys = ("kind", "context", "extension", "vector")
        for line in self.lines:
            if "seed" not in line and tuple(line.get(key) for key in keys) == wanted:
                return line
        return None


def compare(measured: Mapping[str, Sequence[Line]], quality: str, reference: str = REFERENCE) -> dict[str, Difference]:
    """Differences of every vector from `reference` in one measure, paired by model and by document or row."""
    of = QUALITIES[quality].of
    values = {name: np.stack([of(line) for line in lines]) for name, lines in measured.items()}
    # A row may ask for nothing beyond L; it is the same row for all.
    asked = np.all([np.isfinite(value).all(axis=0) for value in values.values()], axis=0)
    if not asked.any():
        return {}
    return paired_differences({name: value[:, asked] for name, value in values.items()}, reference)


def mean(lines: Sequence[Line], quality: str) -> float:
    """Over lines and what they ask for; NaN if that is nothing."""
    values = np.stack([QUALITIES[quality].of(line) for line in lines])
    asked = np.isfinite(values)
    return float(values[asked].mean()) if asked.any() else np.nan


def exact_recall(lines: Sequence[Line]) -> tuple[float, float]:
    """Share of exact answers of both kinds of recall, within and beyond L."""
    of_all = [line[kind] for line in lines for kind in ("facts", "asked")]
    counts, hits = (
        np.sum([np.sum(recall[name]["rows"], axis=0) for recall in of_all], axis=0) for name in ("count", "hits")
    )
    return float(hits[0] / max(counts[0], 1)), float(hits[1] / max(counts[1], 1))


def correlations(table: Table, group: Group, extension: int) -> dict[str, dict[str, RankCorrelation]]:
    """Rank correlation, over all vectors but learned ones, of each cost with each measure of zero-shot quality."""
    measured = table.measured(extension, ZERO_SHOT, group)
    found = {name: table.vector(group[1], extension, name) for name in measured if name != LEARNED}
    vectors = {name: vector for name, vector in found.items() if vector is not None}
    if len(vectors) < 3:
        return {}
    # Of the models that were measured, in their order.
    energy = {model["seed"]: model.get("energy") for model in table.models(group)}
    energies = [energy[line["seed"]] for line in measured[REFERENCE]]
    costs = {
        cost: np.array([totals(v)[cost] for v in vectors.values()]) for cost in totals(next(iter(vectors.values())))
    }
    for cost in ("disturbance", "two-term"):
        if cost in costs and all(energies):
            costs[f"{cost}, by energy"] = np.array([[totals(v, w)[cost] for v in vectors.values()] for w in energies])
    qualities = {
        quality: np.array([[mean([line], quality) for line in measured[name]] for name in vectors]).T
        for quality in QUALITIES
    }
    return {
        cost: {quality: rank_correlation(values, measure) for quality, measure in qualities.items()}
        for cost, values in costs.items()
    }


def totals(vector: Line, energy: Sequence[float] | None = None) -> dict[str, float]:
    """A vector's costs, means over pairs that `energy` weighs, and the two-term cost of its two parts."""
    means = {name: float(np.average(values, weights=energy)) for name, values in vector["costs"].items()}
    if "changed distances" in means:
        means["two-term"] = means["changed distances"] + UNSEEN_WEIGHT * means["unseen angles"]
    return means


def learning_curves(table: Table, extension: int, stage: str) -> dict[str, tuple[list[float], list[float]]]:
    """Mean loss of each method during fine-tuning less that of the reference, over tokens: `{method: (tokens, nats)}`.

    Before an update its rows are new to the model, and the same for all methods. Models that were tuned for other
    numbers of updates are compared over the share of their updates.
    """
    measured = table.measured(extension, stage)
    if REFERENCE not in measured:
        return {}
    updates = min(len(line["losses"]) for line in measured[REFERENCE])
    reference = [np.asarray(line["losses"]) for line in measured[REFERENCE]]
    found = {}
    for name, lines in measured.items():
        differences = [np.asarray(line["losses"]) - base for line, base in zip(lines, reference)]
        parts = [np.array_split(difference, min(updates, 12)) for difference in differences]
        y = np.mean([[part.mean() for part in each] for each in parts], axis=0)
        tokens = np.mean([line["tokens"] for line in lines])
        x = (np.arange(len(y)) + 0.5) / len(y) * tokens
        found[name] = (x.tolist(), y.tolist())
    return found


def stages(table: Table) -> list[str]:
    present = {line["stage"] for line in table.lines if line["kind"] == "measured"}
    return [stage for stage in STAGES if stage in present]
