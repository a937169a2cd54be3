"""An evaluation's page: `report.md` with its pictures, made from `results.json` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rope_jax.evaluation.scores import AVERAGE, AVERAGE_OF_RUN
from rope_jax.files import write_text
from rope_jax.report import evaluation_plots
from rope_jax.report.plots import NAMES

# What lies at a depth of each benchmark's prompts.
HIDDEN = {"passkey": "key", "ruler": "needle", "key_value": "pair"}


def write_evaluation_page(folder: Path, results: Mapping) -> None:
    """Writes `report.md` and `plots/*.png`.

    Args:
        folder: the evaluation's folder.
        results: content of `results.json`.
    """
    suites, original = results["suites"], results["context"]["original"]
    plots = folder / "plots"
    if "perplexity" in suites:
        curves = {method: record["by_position"]["buckets"] for method, record in suites["perplexity"].items()}
        evaluation_plots.perplexity_by_position(plots / "perplexity_by_position.png", curves, original)
    panels = _panels(results)
    if panels:
        evaluation_plots.score_by_length(plots / "score_by_length.png", panels, original)
    for suite in _with_depths(results):
        grids = {method: record["grids"] for method, record in suites[suite].items()}
        evaluation_plots.depth_maps(plots / f"{suite}.png", results["titles"][suite], grids, HIDDEN[suite])
    write_text(folder / "report.md", "\n".join(_lines(results)))


def _lines(results: Mapping) -> list[str]:
    suites, context = results["suites"], results["context"]
    lengths = ", ".join(f"{length:,}" for length in context["lengths"])
    lines = [
        f"# Evaluation of {results['model']['path']}",
        "",
        f"Trained at {context['original']:,} tokens, evaluated at {lengths}, with the scale vectors "
        f"{', '.join(NAMES[method] for method in results['methods'])}. Scores are percentages, in brackets their 95% "
        "confidence intervals.",
        "",
    ]
    if _panels(results):
        lines += ["![Scores by length](plots/score_by_length.png)", ""]
    lines += _short_context(results)
    if "perplexity" in suites:
        lines += _perplexity(results)
    for suite in suites:
        if suite in results["titles"]:
            lines += _questions(results, suite)
    if "leaderboard" in suites:
        lines += _leaderboard(suites["leaderboard"])
    if "longppl" in suites:
        lines += _longppl(results)
    lines += ["## Not run", ""]
    lines += [f"- {_what(missing)}: {' '.join(missing['reason'].split())}" for missing in results["not_run"]]
    lines += [] if results["not_run"] else ["Everything that was asked for was run."]
    lines += ["", "## How to repeat it", "", "```", results["command"], "```", ""]
    lines += [
        "Versions: " + ", ".join(f"{name} {version}" for name, version in results["versions"].items()) + ".",
        f"Seconds: {', '.join(f'{stage} {seconds:.0f}' for stage, seconds in results['seconds'].items())}.",
        "All numbers, with the full configuration: `results.json`. All answers: `predictions/`.",
        "",
    ]
    return lines


def _short_context(results: Mapping) -> list[str]:
    """Each method at the original window and at the longest one."""
    suites, original = results["suites"], results["context"]["original"]
    longest = max(results["context"]["lengths"])
    columns: dict[str, dict[str, str]] = {}
    if "perplexity" in suites:
        for window in dict.fromkeys((original, longest)):
            cells = {m: _perplexity_at(record, window, "token") for m, record in suites["perplexity"].items()}
            columns[f"perplexity, {window:,}"] = cells
    for suite in _by_length(results):
        for length in dict.fromkeys((original, longest)):
            cells = {m: _cell(_summary(record["table"]).get(str(length))) for m, record in suites[suite].items()}
            columns[f"{results['titles'][suite]}, {length:,}"] = cells
    if "longbench_e" in suites:
        cells = {m: _cell(_summary(record["table"])["0-4k"]) for m, record in suites["longbench_e"].items()}
        columns["LongBench-E, below 4,000 words"] = cells
    if "leaderboard" in suites:
        tasks = list(next(iter(suites["leaderboard"].values()))["scores"])
        columns[f"leaderboard, mean of {', '.join(tasks)}"] = {
            m: f"{sum(record['scores'][task]['score'] for task in tasks) / len(tasks):.2f}"
            for m, record in suites["leaderboard"].items()
        }
    columns = {name: cells for name, cells in columns.items() if any(cell != "-" for cell in cells.values())}
    if not columns:
        return []
    rows = [[NAMES[m], *(cells[m] for cells in columns.values())] for m in results["methods"]]
    return [
        "## Did short context suffer?",
        "",
        f"The model was trained at {original:,} tokens; {longest:,} is the longest that was evaluated.",
        "",
        *_markdown(["method", *columns], rows),
        "",
    ]


def _perplexity(results: Mapping) -> list[str]:
    lengths, suite = results["context"]["lengths"], results["suites"]["perplexity"]
    first = next(record for record in next(iter(suite.values())).values() if "convention" in record)
    lines = [
        "## Perplexity",
        "",
        f"Sliding window, stride {first['stride']}, {first['documents']} documents, {first['tokens']:,} scored tokens. "
        "Conventions: `token` is exp of the mean NLL of tokens, each scored once with all the context that fits; "
        "`yarn` weighs every window alike; `longlora` scores every token of every window.",
        "",
        "![Perplexity by position](plots/perplexity_by_position.png)",
        "",
    ]
    conventions = list(dict.fromkeys(r["convention"] for m in suite.values() for r in m.values() if "convention" in r))
    head = ["method", "convention", *(_length_name(results, length) for length in lengths)]
    rows = [
        [NAMES[method], convention, *(_perplexity_at(record, length, convention) for length in lengths)]
        for convention in conventions
        for method, record in suite.items()
    ]
    lines += [*_markdown(head, rows), ""]
    for label, field in (
        ("Bits per byte", "bits_per_byte"),
        ("Perplexity per word of PG19's test split", "word_perplexity"),
    ):
        rows = [
            [NAMES[method], *(f"{record[f'{length} token'][field]:.3f}" for length in lengths)]
            for method, record in suite.items()
            if record.get(f"{lengths[0]} token", {}).get(field) is not None
        ]
        if rows:
            head = ["method", *(_length_name(results, length) for length in lengths)]
            lines += [f"{label}:", "", *_markdown(head, rows), ""]
    return lines


def _questions(results: Mapping, suite: str) -> list[str]:
    records = results["suites"][suite]
    samples = max(record["samples"] for record in records.values())
    lines = [f"## {results['titles'][suite]}", "", f"{results['notes'][suite]} {samples:,} samples.", ""]
    if suite in _with_depths(results):
        lines += [f"![{results['titles'][suite]} by length and depth](plots/{suite}.png)", ""]
    columns = list(next(iter(next(iter(records.values()))["table"].values())))
    names = [_length_name(results, int(c)) if c.isdecimal() else c for c in columns]
    tables = {method: record["table"] for method, record in records.items()}
    tasks = list(next(iter(tables.values())))
    several = len(tasks) > 1
    partial = AVERAGE_OF_RUN in tasks
    if several:
        run = [t for t in tasks if t not in (AVERAGE, AVERAGE_OF_RUN) and _has_any(tables, t)]
        of = (
            f"over the {len(run)} tasks that were run, which is not the benchmark's average"
            if partial
            else "over all tasks"
        )
        lines += [f"Average {of}:", ""]
    rows = [[NAMES[method], *(_cell(_summary(table).get(c)) for c in columns)] for method, table in tables.items()]
    lines += [*_markdown(["method", *names], rows), ""]
    if several:
        rows = []
        for task in tasks:
            if task in (AVERAGE, AVERAGE_OF_RUN):
                continue
            if not _has_any(tables, task):
                rows.append([task, "not run", *("-" for _ in columns)])
                continue
            rows += [[task, NAMES[m], *(_cell(table[task].get(c)) for c in columns)] for m, table in tables.items()]
        lines += ["By task:", "", *_markdown(["task", "method", *names], rows), ""]
    return lines


def _leaderboard(suite: Mapping[str, Mapping]) -> list[str]:
    columns = {}
    for record in suite.values():
        for task, score in record["scores"].items():
            columns[task] = f"{task}, {score['shots']}-shot, {score['metric']}"
    rows = [
        [
            NAMES[method],
            *(_score(record["scores"][task]["score"], record["scores"][task]["interval"]) for task in columns),
        ]
        for method, record in suite.items()
    ]
    return [
        "## Open LLM leaderboard",
        "",
        "lm_eval's tasks and scores; their questions are short.",
        "",
        *_markdown(["method", *columns.values()], rows),
        "",
    ]


def _longppl(results: Mapping) -> list[str]:
    rows = []
    for method, stages in results["suites"]["longppl"].items():
        record = stages["longppl"]
        low, high = record["interval"] or (None, None)
        value = "-" if record["long_perplexity"] is None else f"{record['long_perplexity']:.3f}"
        rows.append(
            [
                NAMES[method],
                value if low is None else f"{value} ({low:.2f} to {high:.2f})",
                f"{record['perplexity']:.3f}",
                f"{record['key_tokens']:,} of {record['tokens']:,}",
            ]
        )
    evaluator = results["config"]["eval"]["longppl_evaluator"]
    return [
        "## LongPPL",
        "",
        f"Perplexity of the tokens that need a long context, by the losses of {evaluator}.",
        "",
        *_markdown(["method", "LongPPL", "perplexity of all tokens", "key tokens"], rows),
        "",
    ]


def _panels(results: Mapping) -> dict[str, dict[str, dict]]:
    """Of each benchmark with lengths what its curves show."""
    panels = {}
    for suite in _by_length(results):
        curves = {}
        for method, record in results["suites"][suite].items():
            cells = {int(c): cell for c, cell in _summary(record["table"]).items() if cell["mean"] is not None}
            if cells:
                curves[method] = {
                    "lengths": list(cells),
                    "mean": [cell["mean"] for cell in cells.values()],
                    "interval": [cell["interval"] for cell in cells.values()],
                }
        if curves:
            panels[results["titles"][suite]] = curves
    return panels


def _by_length(results: Mapping) -> list[str]:
    return [suite for suite in results["suites"] if suite in results["titles"] and suite != "longbench_e"]


def _with_depths(results: Mapping) -> list[str]:
    return [suite for suite in _by_length(results) if any(r["grids"] for r in results["suites"][suite].values())]


def _summary(table: Mapping[str, Mapping]) -> Mapping:
    """The row that stands for a benchmark: its average, or that of what was run, or its only task."""
    return next((table[name] for name in (AVERAGE_OF_RUN, AVERAGE) if name in table), next(iter(table.values())))


def _has_any(tables: Mapping[str, Mapping], task: str) -> bool:
    return any(cell["mean"] is not None for table in tables.values() for cell in table[task].values())


def _length_name(results: Mapping, length: int) -> str:
    return f"{length:,} (original)" if length == results["context"]["original"] else f"{length:,}"


def _what(missing: Mapping) -> str:
    task = (
        f"{missing['suite']}, {missing['task']}" if missing["task"] not in ("", missing["suite"]) else missing["suite"]
    )
    return f"{task} at {missing['length']:,} tokens" if missing["length"] else task


def _perplexity_at(record: Mapping, window: int, convention: str) -> str:
    result = record.get(f"{window} {convention}")
    if result is None:
        return "-"
    if result["interval"] is None:
        return f"{result['perplexity']:.3f}"
    low, high = result["interval"]
    return f"{result['perplexity']:.3f} ({low:.2f} to {high:.2f})"


def _cell(cell: Mapping | None) -> str:
    if cell is None or cell["mean"] is None:
        return "-"
    return _score(cell["mean"], cell["interval"])


def _score(mean: float, interval: Sequence[float] | None) -> str:
    return f"{mean:.2f}" if interval is None else f"{mean:.2f} ({interval[0]:.1f} to {interval[1]:.1f})"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
