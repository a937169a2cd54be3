"""The page of `evaluate`."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from rope_jax.evaluation.scores import AVERAGE, AVERAGE_OF_RUN
from rope_jax.report import figures
from rope_jax.report.page import Block, Page, Section, Table, counted, reproduction, signed, with_interval
from rope_jax.report.styles import titled

# What lies at the depth in each benchmark's prompts.
HIDDEN = {"passkey": "key", "ruler": "needle", "key_value": "pair", "recall": "fact"}


def evaluation_page(results: Mapping) -> Page:
    """An evaluation's page, from the content of `results.json`."""
    suites, context = results["suites"], results["context"]
    introduction = (
        f"Trained at {context['original']:,} tokens, evaluated at "
        f"{', '.join(f'{length:,}' for length in context['lengths'])}, with the scale vectors "
        f"{', '.join(titled(method) for method in results['methods'])}. Scores are percentages, in brackets their 95% "
        "confidence intervals."
    )
    blocks: list[Block] = [*_verdict(results), introduction]
    panels = _panels(results)
    if panels:
        blocks.append(figures.score_by_length(panels, context["original"]))
    return Page(
        f"Evaluation of {results['model']['path']}",
        blocks,
        [
            Section("Did short context suffer?", _short_context(results)),
            Section("Perplexity", _perplexity(results) if "perplexity" in suites else ()),
            *(
                Section(results["titles"][suite], _answers(results, suite))
                for suite in suites
                if suite in results["titles"]
            ),
            Section("Open LLM leaderboard", _leaderboard(suites["leaderboard"]) if "leaderboard" in suites else ()),
            Section("LongPPL", _longppl(results) if "longppl" in suites else ()),
            Section("Not run", _not_run(results["not_run"])),
            reproduction(results, "All answers: `predictions/`."),
        ],
    )


def _verdict(results: Mapping) -> list[Block]:
    """Which vectors read better far in the window than the reference; empty if there is nothing to compare."""
    found, places = results["comparisons"]["suites"].get("perplexity"), _regions(results)
    if not found or "long" not in places:
        return []
    told: dict[str, list[str]] = {"Better": [], "Worse": [], "Not told apart": []}
    ranked = sorted(found, key=lambda method: found[method]["regions"]["long"]["difference"] or 0)
    for method in ranked:
        place = found[method]["regions"]["long"]
        low, high = place["interval"] or (0, 0)
        name = "Better" if high < 0 else "Worse" if low > 0 else "Not told apart"
        told[name].append(f"{titled(method)} {signed(place['difference'], place['interval'], 3)}")
    start, end = places["long"]["start"], places["long"]["end"] - 1
    reference = titled(results["comparisons"]["reference"])
    groups = ". ".join(f"*{name}*: {'; '.join(methods)}" for name, methods in told.items() if methods)
    return [
        f"NLL at positions {start:,} to {end:,}, in nats per token less that of {reference}; paired, 95% intervals. "
        f"{groups}."
    ]


def _short_context(results: Mapping) -> list[Block]:
    """Every method at the original window and at the longest one."""
    suites, original = results["suites"], results["context"]["original"]
    longest = max(results["context"]["lengths"])
    windows = dict.fromkeys((original, longest))
    columns: dict[str, dict[str, str]] = {}
    for window in windows:
        measured = suites.get("perplexity", {}).items()
        columns[f"perplexity, {window:,}"] = {m: _perplexity_at(record, window, "token") for m, record in measured}
    for suite in _by_length(results):
        for window in windows:
            columns[f"{results['titles'][suite]}, {window:,}"] = _averages(suites[suite], str(window))
    if "longbench_e" in suites:
        columns["LongBench-E, below 4,000 words"] = _averages(suites["longbench_e"], "0-4k")
    if "leaderboard" in suites:
        tasks = list(next(iter(suites["leaderboard"].values()))["scores"])
        columns[f"leaderboard, mean of {', '.join(tasks)}"] = {
            method: f"{sum(record['scores'][task]['score'] for task in tasks) / len(tasks):.2f}"
            for method, record in suites["leaderboard"].items()
        }
    columns = {name: cells for name, cells in columns.items() if any(cell != "-" for cell in cells.values())}
    if not columns:
        return []
    return [
        f"The model was trained at {original:,} tokens; {longest:,} is the longest that was evaluated.",
        _by_method(columns, {m: [cells[m] for cells in columns.values()] for m in results["methods"]}),
    ]


def _averages(suite: Mapping[str, Mapping], column: str) -> dict[str, str]:
    return {method: _cell(_summary(record["table"]).get(column)) for method, record in suite.items()}


def _perplexity(results: Mapping) -> list[Block]:
    context, suite = results["context"], results["suites"]["perplexity"]
    lengths = context["lengths"]
    head = [_length_name(results, length) for length in lengths]
    windows = [window for record in suite.values() for window in record.values() if "convention" in window]
    curves = {method: record["by_position"]["buckets"] for method, record in suite.items()}
    blocks: list[Block] = [figures.perplexity_by_position({"": curves}, context["original"])]
    if compared := results["comparisons"]["suites"].get("perplexity"):
        differences = {method: found["by_position"] for method, found in compared.items()}
        blocks.append(
            figures.difference_by_position(differences, results["comparisons"]["reference"], context["original"])
        )
    if windows:
        rows = [
            [titled(method), convention, *(_perplexity_at(record, length, convention) for length in lengths)]
            for convention in dict.fromkeys(window["convention"] for window in windows)
            for method, record in suite.items()
        ]
        text = (
            f"Sliding window, stride {windows[0]['stride']}, {counted(windows[0]['documents'], 'document')}, "
            f"{windows[0]['tokens']:,} scored tokens. Conventions: `token` is exp of the mean NLL of tokens, each "
            "scored once with all the context that fits; `yarn` weighs every window alike; `longlora` scores every "
            "token of every window."
        )
        blocks = [text, *blocks, Table(["method", "convention", *head], rows)]
    blocks += _differences(
        results,
        "perplexity",
        {f"{length:,}": lambda found, name=f"{length} token": found.get(name) for length in lengths if windows}
        | {
            f"{place['start']:,} to {place['end'] - 1:,}": lambda found, name=name: found["regions"][name]
            for name, place in _regions(results).items()
        },
        "NLL in nats per token less that of the reference ({reference}), by window, and by position in the longest one",
        3,
    )
    labels = {"bits_per_byte": "Bits per byte", "word_perplexity": "Perplexity per word of PG19's test split"}
    for field, label in labels.items():
        cells = {
            method: [f"{record[f'{length} token'][field]:.3f}" for length in lengths]
            for method, record in suite.items()
            if record.get(f"{lengths[0]} token", {}).get(field) is not None
        }
        if cells:
            blocks += [f"{label}:", _by_method(head, cells)]
    return blocks


def _answers(results: Mapping, suite: str) -> list[Block]:
    """A benchmark of generated answers: its depth maps, its average and its tasks."""
    records, title = results["suites"][suite], results["titles"][suite]
    tables = {method: record["table"] for method, record in records.items()}
    tasks = list(next(iter(tables.values())))
    columns = list(next(iter(next(iter(tables.values())).values())))
    head = [_length_name(results, int(column)) if column.isdecimal() else column for column in columns]
    samples = max(record["samples"] for record in records.values())
    blocks: list[Block] = [f"{results['notes'][suite]} {counted(samples, 'sample')}."]
    if suite in HIDDEN and any(record["grids"] for record in records.values()):
        grids = {method: record["grids"] for method, record in records.items()}
        blocks.append(figures.depth_maps(suite, title, grids, HIDDEN[suite]))
    run = {
        task: any(cell["mean"] is not None for table in tables.values() for cell in table[task].values())
        for task in tasks
        if task not in (AVERAGE, AVERAGE_OF_RUN)
    }
    if len(tasks) > 1:
        partial = f"the {counted(sum(run.values()), 'task')} that were run, which is not the benchmark's average"
        blocks.append(f"Average over {partial if AVERAGE_OF_RUN in tasks else 'all tasks'}:")
    averages = {m: _summary(table) for m, table in tables.items()}
    blocks.append(_by_method(head, {m: [_cell(row.get(c)) for c in columns] for m, row in averages.items()}))
    blocks += _differences(
        results,
        suite,
        {name: lambda found, column=column: found.get(column) for name, column in zip(head, columns)},
        "Points less those of the reference ({reference})",
        2,
    )
    if len(tasks) > 1:
        rows = []
        for task, was_run in run.items():
            if was_run:
                rows += [
                    [task, titled(m), *(_cell(table[task].get(c)) for c in columns)] for m, table in tables.items()
                ]
            else:
                rows.append([task, "-", *("not run" for _ in columns)])
        blocks += ["By task:", Table(["task", "method", *head], rows)]
    return blocks


def _leaderboard(suite: Mapping[str, Mapping]) -> list[Block]:
    columns = {
        task: f"{task}, {score['shots']}-shot, {score['metric']}"
        for record in suite.values()
        for task, score in record["scores"].items()
    }
    scores = {method: [record["scores"][task] for task in columns] for method, record in suite.items()}
    cells = {m: [with_interval(s["score"], s["interval"], (2, 1)) for s in row] for m, row in scores.items()}
    return ["lm_eval's tasks and scores; their questions are short.", _by_method(columns.values(), cells)]


def _longppl(results: Mapping) -> list[Block]:
    records = {method: stages["longppl"] for method, stages in results["suites"]["longppl"].items()}
    cells = {
        method: [
            with_interval(record["long_perplexity"], record["interval"], (3, 2)),
            f"{record['perplexity']:.3f}",
            f"{record['key_tokens']:,} of {record['tokens']:,}",
        ]
        for method, record in records.items()
    }
    return [
        "Perplexity of the tokens that need a long context, by the losses of "
        f"{results['config']['eval']['longppl_evaluator']}.",
        _by_method(("LongPPL", "perplexity of all tokens", "key tokens"), cells),
        *_differences(
            results,
            "longppl",
            {"key tokens": lambda found: found["longppl"]},
            "NLL of key tokens in nats less that of the reference ({reference})",
            3,
        ),
    ]


def _regions(results: Mapping) -> Mapping:
    found = results["comparisons"]["suites"].get("perplexity")
    return next(iter(found.values()))["regions"] if found else {}


def _differences(
    results: Mapping, suite: str, columns: Mapping[str, Callable[[Mapping], Mapping | None]], title: str, digits: int
) -> list[Block]:
    """A table of paired differences from the reference method; empty if there is nothing to compare."""
    found = results["comparisons"]["suites"].get(suite)
    if not found:
        return []
    cells = {method: [read(differences) for read in columns.values()] for method, differences in found.items()}
    rows = {m: [signed(c["difference"], c["interval"], digits) if c else "-" for c in row] for m, row in cells.items()}
    units = "documents" if suite in ("perplexity", "longppl") else "samples"
    text = title.format(reference=titled(results["comparisons"]["reference"]))
    return [f"{text}; paired, 95% intervals over {units}:", _by_method(columns, rows)]


def _not_run(missing: Sequence[Mapping]) -> list[Block]:
    if not missing:
        return ["Everything that was asked for was run."]
    rows = []
    for one in missing:
        name = one["suite"] if one["task"] in ("", one["suite"]) else f"{one['suite']}, {one['task']}"
        rows.append([name, f"{one['length']:,}" if one["length"] else "all", " ".join(one["reason"].split())])
    return [Table(["benchmark", "tokens", "reason"], rows)]


def _panels(results: Mapping) -> dict[str, dict[str, dict[int, Mapping]]]:
    """Title of a benchmark to method to length to the average's cell."""
    panels = {}
    for suite in _by_length(results):
        for method, record in results["suites"][suite].items():
            summary = _summary(record["table"])
            cells = {int(length): cell for length, cell in summary.items() if cell["mean"] is not None}
            if cells:
                panels.setdefault(results["titles"][suite], {})[method] = cells
    return panels


def _by_length(results: Mapping) -> list[str]:
    """Benchmarks whose columns are lengths in tokens."""
    return [suite for suite in results["suites"] if suite in results["titles"] and suite != "longbench_e"]


def _by_method(head: Iterable[str], cells: Mapping[str, Sequence[str]]) -> Table:
    """A row of cells per method."""
    return Table(["method", *head], [[titled(method), *row] for method, row in cells.items()])


def _summary(table: Mapping[str, Mapping]) -> Mapping:
    """A benchmark's row: its average, else the average of what was run, else its only task."""
    return next((table[name] for name in (AVERAGE_OF_RUN, AVERAGE) if name in table), next(iter(table.values())))


def _length_name(results: Mapping, length: int) -> str:
    return f"{length:,} (original)" if length == results["context"]["original"] else f"{length:,}"


def _perplexity_at(record: Mapping, window: int, convention: str) -> str:
    result = record.get(f"{window} {convention}")
    return "-" if result is None else with_interval(result["perplexity"], result["interval"], (3, 2))


def _cell(cell: Mapping | None) -> str:
    return "-" if cell is None else with_interval(cell["mean"], cell["interval"], (2, 1))
