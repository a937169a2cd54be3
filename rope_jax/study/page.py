"""The page of a study, from the lines of its table alone."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from rope_jax.report.figures import Line as Curve
from rope_jax.report.figures import LinePlot, Panel
from rope_jax.report.page import Block, Command, Page, Section, counted
from rope_jax.report.page import Table as Cells
from rope_jax.report.styles import NAMES, titled
from rope_jax.rope.methods.adjusted import parse_adjusted
from rope_jax.study.analysis import (
    QUALITIES,
    REFERENCE,
    Line,
    Table,
    compare,
    correlations,
    exact_recall,
    learning_curves,
    mean,
    stages,
)
from rope_jax.study.design import SKIPPED, TUNED, ZERO_SHOT
from rope_jax.study.statistics import Difference

TITLES = {ZERO_SHOT: "zero-shot", TUNED: "fine-tuned", SKIPPED: "fine-tuned with skipped positions"}
EXTRAPOLATION = "extrapolation"
# Differences are also shown from the strongest vector that is used without training.
RIVAL = "mrrope_pro"
# Methods whose parameters are varied.
_ABLATED = ("dprope", "dprope_argmin", "dprope_robust", "two_term")


def study_page(lines: Sequence[Line]) -> Page:
    """The page of the lines of a `table.jsonl`."""
    table = Table(lines)
    sections = [Section("Does extrapolation fail?", _extrapolation(table))]
    for extension in table.extensions:
        for stage in stages(table):
            sections.append(Section(f"s = {extension}, {TITLES[stage]}", _comparison(table, extension, stage)))
    sections += [
        Section("What predicts quality", _predictors(table)),
        Section("Parameters of the methods", _ablations(table)),
        Section("The attention factor", _attention_factors(table)),
        Section("Learning curves", _curves(table)),
        Section("Each shape and context", _by_group(table)),
        _reproduction(table),
    ]
    return Page("A study of scale vectors", _introduction(table), sections)


def _introduction(table: Table) -> list[Block]:
    models = table.models()
    shapes = ", ".join(
        f"{counted(len(table.models(group)), 'model')} of {table.models(group)[0]['without_embeddings']:,} parameters "
        f"without embeddings at L = {group[1]} ({table.models(group)[0]['tokens']:,} tokens each)"
        for group in table.groups
    )
    return [
        f"{counted(len(models), 'model')} pre-trained on texts mixed with synthetic recall: {shapes}. Extension "
        f"factors {', '.join(map(str, table.extensions))}. Every vector meets the same documents and rows in every "
        "model.",
        f"*Differences* are from {NAMES[REFERENCE]}, in nats, negative where the method is better, with 95% intervals "
        "from a bootstrap over models and documents (or rows of recall). They hold for all methods of a table together "
        "(max-T). Bold ones exclude 0, and `k of n` models agree in sign.",
        "*Recall* asks for the value of a key that a text states earlier. *Paired context* is the NLL of an answer "
        "less that of the same answer when the text does not state it. *Exact* is the share of answers that are the "
        "most likely token.",
    ]


def _extrapolation(table: Table) -> list[Block]:
    rows = []
    for group in table.groups:
        for extension in table.extensions:
            lines = table.measured(extension, ZERO_SHOT, group).get(EXTRAPOLATION)
            if not lines:
                continue
            recall = [f"{share:.0%}" for share in exact_recall(lines)]
            nll = [f"{mean(lines, quality):.3f}" for quality in ("short", "beyond", "last")]
            rows.append([group[0], str(group[1]), str(extension), *nll, *recall])
    if not rows:
        return []
    head = ["model", "L", "s", *(QUALITIES[quality].title for quality in ("short", "beyond", "last"))]
    head += ["exact within L", "exact beyond L"]
    return [
        "The models as they are, at lengths up to s L: mean NLL of texts, and the share of exact answers by the "
        "distance of what is asked for.",
        Cells(head, rows),
        *_positions(table),
    ]


def _positions(table: Table) -> list[Block]:
    figures: list[Block] = []
    for group in table.groups:
        panels = []
        for extension in table.extensions:
            for stage in stages(table):
                measured = _named(table.measured(extension, stage, group))
                base = _mean_of(measured[REFERENCE], "position") if measured else 0
                lines = [
                    Curve(name, _steps(found, 8), (_mean_of(found, "position") - base).tolist())
                    for name, found in measured.items()
                ]
                panels.append(Panel(lines, "position (tokens)", f"s = {extension}, {TITLES[stage]}"))
        shown = [panel for panel in panels if panel.lines]
        if shown:
            values = [y for panel in shown for line in panel.lines for y in line.y]
            limits = float(np.quantile(values, 0.005)) - 0.03, float(np.quantile(values, 0.95)) + 0.03
            name = f"position_{group[0]}_{group[1]}"
            title, what = f"{group[0]}, L = {group[1]}", f"NLL less that of {titled(REFERENCE)} (nats)"
            figures.append(LinePlot(name, shown, what, title, y_limits=limits, original=group[1]))
    return figures


def _comparison(table: Table, extension: int, stage: str) -> list[Block]:
    measured = _plain(table.measured(extension, stage))
    if len(measured) < 2:
        return []
    blocks: list[Block] = [f"{counted(len(measured[REFERENCE]), 'model')}.", _differences(measured)]
    return blocks + _recall(table, extension, stage)


def _differences(measured: Mapping[str, Sequence[Line]]) -> Cells:
    differences = {quality: compare(measured, quality) for quality in QUALITIES}
    rival = compare(measured, "beyond", RIVAL) if RIVAL in measured else {}
    order = sorted(measured, key=lambda name: mean(measured[name], "beyond"))
    rows = []
    for name in order:
        lines = measured[name]
        if name == REFERENCE:
            cells = [f"{mean(lines, quality):.3f}" for quality in QUALITIES]
        else:
            cells = [_difference(found.get(name)) for found in differences.values()]
        cells += [_difference(rival.get(name))] if rival else []
        rows.append([titled(name), *cells, f"{exact_recall(lines)[1]:.0%}"])
    head = ["method", *(quality.title for quality in QUALITIES.values())]
    head += [f"{QUALITIES['beyond'].title}, from {titled(RIVAL)}"] if rival else []
    return Cells([*head, "exact beyond L"], rows)


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    low, high = difference.together
    seeds = sum(value < 0 for value in difference.seeds)
    shown = f"{difference.mean:+.3f} ({low:+.3f} to {high:+.3f})"
    agree = f", {max(seeds, len(difference.seeds) - seeds)} of {len(difference.seeds)}"
    return f"**{shown}**{agree}" if low > 0 or high < 0 else shown + agree


def _recall(table: Table, extension: int, stage: str) -> list[Block]:
    panels = []
    for group in table.groups:
        measured = _named(table.measured(extension, stage, group))
        lines = [
            Curve(name, _steps(found, 4), (100 * _recall_by_distance(found)).tolist())
            for name, found in measured.items()
        ]
        if lines:
            panels.append(Panel(lines, "distance (tokens)", f"{group[0]}, L = {group[1]}"))
    if not panels:
        return []
    title = f"Recall, s = {extension}, {TITLES[stage]}"
    return [LinePlot(f"recall_{extension}_{stage}", panels, "exact (%)", title, y_limits=(-3, 103))]


def _recall_by_distance(lines: Sequence[Line]) -> np.ndarray:
    counts, hits = (np.sum([line["facts"][name]["distance"] for line in lines], axis=0) for name in ("count", "hits"))
    # A gap where nothing is asked for.
    return np.divide(hits, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def _predictors(table: Table) -> list[Block]:
    qualities = ("beyond", "last", "short", "recall")
    rows, numbers = [], []
    for group in table.groups:
        for extension in table.extensions:
            found = correlations(table, group, extension)
            numbers += [len(table.measured(extension, ZERO_SHOT, group))] if found else []
            for cost, by_quality in found.items():
                cells = [
                    f"{c.value:+.2f} ({c.interval[0]:+.2f} to {c.interval[1]:+.2f})"
                    for c in (by_quality[quality] for quality in qualities)
                ]
                rows.append([group[0], str(group[1]), str(extension), cost, *cells])
    if not rows:
        return []
    return [
        f"Spearman's rank correlation, over {min(numbers)} vectors or more, random ones included, between what is "
        "known of a vector without running a model and what it does zero-shot: the mean over seeds, with a 95% "
        "interval over vectors. +1 means that the cost orders the vectors as the NLL does.",
        Cells(["model", "L", "s", "cost", *(QUALITIES[quality].title for quality in qualities)], rows),
    ]


def _ablations(table: Table) -> list[Block]:
    rows = []
    for extension in table.extensions:
        measured = table.measured(extension, ZERO_SHOT)
        names = [name for name in measured if re.search(r"_[bntw]\d+$", name)]
        chosen = {
            name: measured[name] for name in (REFERENCE, *_ABLATED, *sorted(names, key=_number)) if name in measured
        }
        if len(chosen) < 3:
            continue
        differences = {quality: compare(chosen, quality) for quality in ("beyond", "short")}
        for name in chosen:
            if name != REFERENCE:
                cells = [_difference(differences[quality][name]) for quality in differences]
                rows.append([str(extension), titled(name), *cells])
    if not rows:
        return []
    return [
        "Zero-shot, differences as above. Interpolated dimensions are varied as in the paper's table 4; `_bN` counts "
        "angles in N intervals, as in its table 6; a taper averages factors over neighbouring pairs.",
        Cells(["s", "method", QUALITIES["beyond"].title, QUALITIES["short"].title], rows),
    ]


def _attention_factors(table: Table) -> list[Block]:
    panels, rows = [], []
    for extension in table.extensions:
        measured = table.measured(extension, ZERO_SHOT)
        lines = []
        for method in ("yarn", "mrrope_pro", "dprope_robust", "two_term"):
            said = {name: parse_adjusted(name) for name in measured}
            found = {
                name: measured[name]
                for name, (base, taper, _, parameters) in said.items()
                if base == method and not taper and not parameters
            }
            if len(found) < 3:
                continue
            by_factor = sorted((_attention_factor(table, name, extension), name) for name in found)
            means = [mean(found[name], "beyond") for _, name in by_factor]
            lines.append(Curve(method, [factor for factor, _ in by_factor], means))
            best, name = by_factor[int(np.argmin(means))]
            recall = exact_recall(found[name])[1]
            rows.append([str(extension), titled(method), f"{best:.3f}", f"{min(means):.3f}", f"{recall:.0%}"])
        panels += [Panel(lines, "attention factor", f"s = {extension}")] if lines else []
    if not panels:
        return []
    return [
        "Zero-shot, the mean over all models. Along a line, only the factor on cos and sin differs.",
        LinePlot("attention_factor", panels, QUALITIES["beyond"].title + " (nats)"),
        "The best that was measured:",
        Cells(["s", "method", "attention factor", QUALITIES["beyond"].title, "exact beyond L"], rows),
    ]


def _attention_factor(table: Table, name: str, extension: int) -> float:
    """Of a vector that needs no model; the mean over original contexts, on which LongRoPE's depends."""
    contexts = dict.fromkeys(context for _, context in table.groups)
    found = [table.vector(context, extension, name) for context in contexts]
    return float(np.mean([vector["attention_factor"] for vector in found if vector is not None]))


def _number(name: str) -> tuple[str, int]:
    digits = "".join(c for c in name if c.isdigit())
    return name.rstrip("0123456789"), int(digits or 0)


def _curves(table: Table) -> list[Block]:
    panels = []
    for extension in table.extensions:
        for stage in (TUNED, SKIPPED):
            found = {name: xy for name, xy in learning_curves(table, extension, stage).items() if name in NAMES}
            if len(found) > 1:
                lines = [Curve(name, *xy) for name, xy in found.items()]
                panels.append(Panel(lines, "tokens of fine-tuning", f"s = {extension}, {TITLES[stage]}"))
    if not panels:
        return []
    values = [y for panel in panels for line in panel.lines for y in line.y]
    limits = float(np.quantile(values, 0.01)) - 0.02, float(np.quantile(values, 0.98)) + 0.05
    return [
        f"Loss of a method before each update less that of {NAMES[REFERENCE]} on the same rows, the mean over models.",
        LinePlot("learning", panels, "difference (nats)", y_limits=limits),
    ]


def _by_group(table: Table) -> list[Block]:
    blocks: list[Block] = []
    for group in table.groups:
        for extension in table.extensions:
            for stage in stages(table):
                measured = _plain(table.measured(extension, stage, group))
                if len(measured) > 1:
                    title = f"{group[0]}, L = {group[1]}, s = {extension}, {TITLES[stage]}"
                    blocks += [f"*{title}*: {counted(len(measured[REFERENCE]), 'seed')}.", _differences(measured)]
    return blocks if len(table.groups) > 1 else []


def _reproduction(table: Table) -> Section:
    about, models = table.about, table.models()
    training = sum(line["seconds"] for line in models)
    rest = sum(line["seconds"] for line in table.lines if line["kind"] == "measured")
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return Section(
        "How to repeat it",
        [
            Command(about["command"]),
            f"Versions: {versions}. Hours: {training / 3600:.1f} of pre-training, {rest / 3600:.1f} of fine-tuning and "
            "measuring. The first line of the table has the whole config, every other line one record.",
        ],
    )


def _plain(measured: Mapping[str, list[Line]]) -> dict[str, list[Line]]:
    """Methods, without random vectors, ablations and attention factors that are numbers."""
    names = {name: parse_adjusted(name) for name in measured}
    return {
        name: measured[name]
        for name, (method, taper, factor, parameters) in names.items()
        if method in NAMES and not taper and not parameters and not factor[:1].isdigit()
    }


def _named(measured: Mapping[str, list[Line]]) -> dict[str, list[Line]]:
    """Methods that have a colour, and that are compared in every stage."""
    shown = (
        EXTRAPOLATION,
        "pi",
        "ntk",
        REFERENCE,
        "mrrope_pro",
        "dprope",
        "dprope_argmin",
        "dprope_robust",
        "two_term",
        "two_term@yarn",
    )
    return {name: measured[name] for name in (*shown, "minimal", "learned", "cope") if name in measured}


def _steps(lines: Sequence[Line], parts: int) -> list[float]:
    """Middles of the ranges of positions or distances, an eighth or a quarter of L wide."""
    key = "position" if parts == 8 else "facts"
    line = lines[0]
    count = len(line["position"]) if key == "position" else len(line["facts"]["count"]["distance"])
    return [(i + 0.5) * line["context"] / parts for i in range(count)]


def _mean_of(lines: Sequence[Line], key: str) -> np.ndarray:
    return np.mean([line[key] for line in lines], axis=0)
