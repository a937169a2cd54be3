"""The pages of `extend` and `evaluate` show what their results hold."""

import pytest

from rope_jax.report import plots
from rope_jax.report.evaluation_page import evaluation_page
from rope_jax.report.extension_page import extension_page
from rope_jax.report.figures import HeatMaps, LinePlot
from rope_jax.report.page import Table, markdown

ENDING = {"command": "python -m it --flag", "versions": {"jax": "1.2"}, "seconds": {"training": 3.4}}
ENDING["changed"] = {"train.steps": {"value": 1, "default": 1000}}
BUCKETS = [
    {"start": start, "end": 2 * start, "perplexity": value, "interval": interval}
    for start, value, interval in ((1, 300.0, None), (32, 5.0, [4.0, 6.0]), (64, 7.0, [6.0, 8.0]))
]


def blocks(page, title):
    return next(section.blocks for section in page.sections if section.title == title)


def window(perplexity, interval=(1.0, 99.0), **more):
    fields = {"perplexity": perplexity, "interval": interval, "documents": 1, "tokens": 2000, "bits_per_byte": None}
    return {**fields, **more}


def apart(difference):
    return {"difference": difference, "interval": [difference - 1, difference + 1], "units": 3}


def passkey(rates):
    """A grid of two lengths and two depths, of which the second has no trial."""
    cells = [[{"trials": 2, "rate": rate}, {"trials": 0, "rate": None}] for rate in rates]
    per_length = [{"successes": int(2 * rate), "trials": 2, "interval": [0.1, 0.9]} for rate in rates]
    return {"lengths": [64, 128], "depths": [[0, 0.5], [0.5, 1]], "cells": cells, "per_length": per_length}


@pytest.fixture
def extension():
    def stage(perplexity, grid):
        measured = {"64": window(perplexity), "128": window(2 * perplexity, bits_per_byte=0.5)}
        return {"perplexity": measured, "by_position": {"buckets": BUCKETS}, "passkey": grid}

    short, long = {**apart(-0.5), "start": 1, "end": 64}, {**apart(2.5), "start": 96, "end": 128}
    scale = {
        **{"disturbance": [0.0, 0.1], "factors": [1.0, 2.0]},
        **{"disturbance_e3": 50.0, "interpolated_dimensions": 2},
    }
    return {
        "name": "small",
        "context": {"original": 64, "target": 128},
        "extension": {"intervals": 360},
        "model": {"parameters": 1234, "description": "2 layers", "head_dim": 4},
        "data": {"description": "texts"},
        "train": {
            **{"steps": 1, "tokens_per_step": 1024, "length": 64, "reach": 512, "mix": 0.25},
            **{"description": "Fine-tuned, all weights.", "flops": 1.5e12, "peak_bytes": None},
        },
        "eval": {"stride": 32},
        "methods": {
            "dprope": {
                "scale": scale,
                "before": stage(8.0, passkey([0.5, 0.0])),
                "after": stage(4.0, passkey([1.0, 0.5])),
            },
            "pi": {"scale": scale, "before": stage(9.0, None), "after": stage(5.0, None)},
        },
        "comparisons": {
            stage: {"pi": {"regions": {"short": {**apart(shift), "start": 1, "end": 64}, "long": long}}}
            for stage, shift in (("before", 0.5), ("after", -0.25))
        }
        | {"gain": {method: {"regions": {"short": dict(short), "long": dict(long)}} for method in ("dprope", "pi")}},
        "export": {"method": "dprope"},
        "next": ["python -m something"],
        **ENDING,
    }


def test_extension_compares_methods_before_and_after(extension):
    page = extension_page(extension, {"dprope": [{"step": 1, "loss": 2.0}], "pi": []})
    table = next(block for block in blocks(page, "Perplexity") if isinstance(block, Table))
    assert list(table.head[3:]) == ["64, before", "64, after", "128, before", "128, after"]
    for row, before, after in zip(table.rows, (8, 9), (4, 5), strict=True):
        values = [f"{value:.3f} (1.00 to 99.00)" for value in (before, after, 2 * before, 2 * after)]
        assert row[1:] == ["50.00", "2 of 4", *values]
    differences = blocks(page, "Perplexity")[-1]
    assert differences.head == ["method", "stage", "1 to 63", "96 to 127"]
    assert differences.rows == [
        ["PI", "before", "+0.500 (-0.500 to +1.500)", "+2.500 (+1.500 to +3.500)"],
        ["PI", "after", "-0.250 (-1.250 to +0.750)", "+2.500 (+1.500 to +3.500)"],
    ]
    text = markdown(page)
    for shown in (
        "NLL in nats per token less that of DPRoPE",
        "DPRoPE",
        "in sequences of 64, whose positions skip up to 512; 0.25 of the microbatches hold documents of at most 64",
        "1 document, 2,000 scored",
        "0.500 to 0.500",
        "python -m it --flag",
        "jax 1.2",
        "training 3",
    ):
        assert shown in text
    assert "gradient" not in text
    gradient = {"factors": [[0.25, -1.0], [0.5, -2.0]], "attention_factor": [0.5, 0.25]}
    gradient["interval"] = [[0.5, -4.0], [1.0, -2.0]]
    extension["methods"]["pi"]["scale"] = {**extension["methods"]["pi"]["scale"], "gradient": gradient}
    *_, figure, said = blocks(extension_page(extension, {}), "Scale vectors and their disturbance")
    (line,) = figure.panels[0].lines
    assert (line.method, line.y, line.interval) == ("pi", [0.75, -3.0], [[0.5, -4.0], [1.0, -2.0]])
    assert "PI +0.75 nats per token" in said
    plots.png(figure)
    positions = page.introduction[-1]
    assert [panel.title for panel in positions.panels] == ["before fine-tuning", "after fine-tuning"]
    # The first tokens, at a perplexity of 300, do not stretch the axis.
    assert positions.y_limits == (0.85 * 5, 1.25 * 7)


def test_extension_begins_with_the_verdict(extension):
    text, _, table, *_ = extension_page(extension, {}).introduction
    assert text.startswith(
        "*DPRoPE, fine-tuned*, against *DPRoPE, before fine-tuning*: at positions 96 to 127 it lowers the NLL by 2.500 "
        "(1.500 to 3.500) nats per token; at positions 1 to 63 it changes the NLL by +0.500 (-0.500 to +1.500) nats "
        "per token, which may be no change."
    )
    assert text.endswith("Keys found: DPRoPE before 1 of 4, DPRoPE after 3 of 4.")
    assert table.head == ["method", "stage", "1 to 63", "96 to 127"]
    assert table.rows == [
        ["DPRoPE", "before", "-0.500 (-1.500 to +0.500)", "+2.500 (+1.500 to +3.500)"],
        ["PI", "after", "-0.250 (-1.250 to +0.750)", "+2.500 (+1.500 to +3.500)"],
    ]
    # The model as it was, if it was measured.
    gain = extension["comparisons"]["gain"]
    gain["extrapolation"] = gain.pop("pi")
    extension["methods"]["extrapolation"] = extension["methods"].pop("pi")
    gain["extrapolation"]["regions"]["long"]["interval"] = [-3.5, -1.5]
    text, _, table, *_ = extension_page(extension, {}).introduction
    assert "against *extrapolation, before fine-tuning*" in text and "raises the NLL by 2.500 (1.500 to 3.500)" in text
    assert [row[:2] for row in table.rows[:2]] == [["extrapolation", "before"], ["DPRoPE", "before"]]
    assert "Better at 96 to 127 after the same fine-tuning: no other method." in text
    rivals = extension["comparisons"]["after"]
    rivals["pi"]["regions"]["long"]["interval"] = None
    assert "Better" not in extension_page(extension, {}).introduction[0]
    shown = markdown(extension_page(extension, {}))
    assert "python -m something" in shown
    assert "1.5e+12 FLOPs" in shown and "| `train.steps` | `1` | `1000` |" in shown


def test_extension_shows_passkeys_where_measured(extension):
    page = extension_page(extension, {})
    maps, table = blocks(page, "Passkey retrieval")[1:]
    assert isinstance(maps, HeatMaps) and list(maps.maps) == ["DPRoPE"]
    assert maps.maps["DPRoPE"]["mean"] == [[100.0, None], [50.0, None]]
    assert [row[1:4] for row in table.rows] == [
        *(["before", "64", "1 of 2"], ["before", "128", "0 of 2"]),
        *(["after", "64", "2 of 2"], ["after", "128", "1 of 2"]),
    ]
    plots.png(maps)
    for method in extension["methods"].values():
        method["before"]["passkey"] = method["after"]["passkey"] = None
    assert "Passkey" not in markdown(extension_page(extension, {}))


def test_extension_shows_recall_where_measured(extension):
    assert "Recall" not in markdown(extension_page(extension, {}))
    for i, method in enumerate(extension["methods"].values()):
        for j, stage in enumerate(("before", "after")):
            cells = {n: {"mean": 10.0 * i + 20 * j + k, "interval": [1.0, 99.0]} for k, n in enumerate(("64", "128"))}
            grid = {"lengths": [64, 128], "depths": [0.25, 0.75], "mean": [[100.0, 0.0], [50.0, 10.0 * j]]}
            method[stage]["recall"] = {"table": {"recall": cells}, "grids": {"recall": grid}}
    page = extension_page(extension, {})
    maps, table = blocks(page, "Recall")[1:]
    assert list(maps.maps) == [f"{m}\n{s} fine-tuning" for m in ("DPRoPE", "PI") for s in ("before", "after")]
    assert maps.maps["PI\nafter fine-tuning"]["mean"][1] == [50.0, 10.0]
    assert [row[:2] for row in table.rows] == [[m, s] for m in ("DPRoPE", "PI") for s in ("before", "after")]
    assert [row[-1] for row in table.rows] == [f"{mean}.0 (1.0 to 99.0)" for mean in (1, 21, 11, 31)]
    assert "Facts recalled in the longest texts: DPRoPE before 1%, DPRoPE after 21%." in page.introduction[0]
    plots.png(maps)


def row(*means, **columns):
    columns = columns or dict(zip(("64", "128"), means))
    return {c: {"mean": mean, "interval": None if mean is None else [mean, mean]} for c, mean in columns.items()}


@pytest.fixture
def evaluation():
    grid = {"lengths": [64, 128], "depths": [0.5], "mean": [[100.0], [None]]}
    measured = {
        f"{length} {convention}": window(perplexity, convention=convention, stride=32)
        for convention, factor in (("token", 1), ("yarn", 2))
        for length, perplexity in ((64, 4.0 * factor), (128, 6.0 * factor))
    }
    ruler = {"niah": row(90.0, 40.0), "vt": row(None, None), "average": row(None, None)}
    ruler["average of those run"] = row(90.0, 40.0)
    sets = {"lcc": {"0-4k": {"mean": 12.0, "interval": None}}}
    leaderboard = {"scores": {"mmlu": {"score": 25.0, "interval": [20, 30], "shots": 5, "metric": "acc"}}}
    longppl = {"long_perplexity": None, "interval": None, "perplexity": 3.0, "key_tokens": 0, "tokens": 100}
    return {
        "model": {"path": "MODEL"},
        "context": {"original": 64, "lengths": [64, 128]},
        "methods": {"own": {}, "pi": {}},
        "titles": {"passkey": "Passkey retrieval", "ruler": "RULER", "longbench_e": "LongBench-E"},
        "notes": {"passkey": "Keys.", "ruler": "Needles.", "longbench_e": "Books."},
        "suites": {
            "perplexity": {m: {**measured, "by_position": {"buckets": BUCKETS}} for m in ("own", "pi")},
            "passkey": {
                m: {"table": {"passkey": row(100.0, 0.0)}, "grids": {"passkey": grid}, "samples": 1}
                for m in ("own", "pi")
            },
            "ruler": {m: {"table": ruler, "grids": {}, "samples": 8} for m in ("own", "pi")},
            "longbench_e": {m: {"table": sets, "grids": {}, "samples": 3} for m in ("own", "pi")},
            "leaderboard": {m: leaderboard for m in ("own", "pi")},
            "longppl": {m: {"longppl": longppl} for m in ("own", "pi")},
        },
        "comparisons": {
            "reference": "own",
            "suites": {
                "perplexity": {
                    "pi": {
                        "64 token": apart(-0.5),
                        "by_position": [{**apart(0.25), "start": 32, "end": 64}],
                        "regions": {"short": {**apart(0.25), "start": 1, "end": 64}},
                    }
                },
                "passkey": {"pi": {"64": apart(-12.5)}},
                "longppl": {"pi": {"longppl": {"difference": None, "interval": None, "units": 0}}},
            },
        },
        "not_run": [{"suite": "ruler", "task": "vt", "length": 0, "reason": "a file is missing.\n  Get it"}],
        "config": {"eval": {"longppl_evaluator": "JUDGE"}},
        **ENDING,
    }


def test_evaluation_has_a_section_per_benchmark(evaluation):
    page = evaluation_page(evaluation)
    assert [section.title for section in page.sections if section.blocks] == [
        *("Did short context suffer?", "Perplexity", "Passkey retrieval", "RULER", "LongBench-E"),
        *("Open LLM leaderboard", "LongPPL", "Not run", "How to repeat it"),
    ]
    for section in page.sections:
        for block in section.blocks:
            if isinstance(block, Table):
                assert {len(row) for row in block.rows} == {len(block.head)}, section.title
    table = blocks(page, "Did short context suffer?")[1]
    short = dict(zip(table.head, table.rows[0], strict=True))
    assert short["perplexity, 64"] == "4.000 (1.00 to 99.00)" and short["perplexity, 128"].startswith("6.000")
    assert short["RULER, 128"] == "40.00 (40.0 to 40.0)" and short["leaderboard, mean of mmlu"] == "25.00"
    text = markdown(page)
    for shown in ("64 (original)", "mmlu, 5-shot, acc", "JUDGE", "| ruler, vt | all | a file is missing. Get it |"):
        assert shown in text
    assert "1 sample." in text and "0 of 100" in text


def test_evaluation_shows_paired_differences_from_the_reference(evaluation):
    page = evaluation_page(evaluation)
    tables = {
        title: [block for block in blocks(page, title) if isinstance(block, Table)]
        for title in ("Perplexity", "Passkey retrieval", "LongPPL")
    }
    table = tables["Perplexity"][1]
    assert (table.head, table.rows) == (
        ["method", "64", "128", "1 to 63"],
        [["PI", "-0.500 (-1.500 to +0.500)", "-", "+0.250 (-0.750 to +1.250)"]],
    )
    assert tables["Passkey retrieval"][1].rows == [["PI", "-12.50 (-13.50 to -11.50)", "-"]]
    assert tables["LongPPL"][1].rows == [["PI", "-"]]
    text = markdown(page)
    assert (
        "less that of the reference (as its config says), by window" in text and "95% intervals over documents" in text
    )
    # By position alone, which takes one pass of each document.
    for record in evaluation["suites"]["perplexity"].values():
        for name in [name for name in record if name != "by_position"]:
            del record[name]
    assert tables["Perplexity"][1].rows[0][-1] in markdown(evaluation_page(evaluation))
    assert "Sliding window" not in markdown(evaluation_page(evaluation))
    pi = evaluation["comparisons"]["suites"]["perplexity"]["pi"]["regions"]
    pi["long"] = {**apart(-2.5), "start": 96, "end": 128}
    verdict = evaluation_page(evaluation).introduction[0]
    assert "positions 96 to 127" in verdict and verdict.endswith("*Better*: PI -2.500 (-3.500 to -1.500).")
    evaluation["comparisons"]["suites"] = {}
    assert "less th" not in markdown(evaluation_page(evaluation))


def test_evaluation_names_tasks_that_were_not_run(evaluation):
    average, table = [block for block in blocks(evaluation_page(evaluation), "RULER") if isinstance(block, Table)]
    assert [row[1:] for row in average.rows] == [["90.00 (90.0 to 90.0)", "40.00 (40.0 to 40.0)"]] * 2
    assert [row[:2] for row in table.rows] == [["niah", "as its config says"], ["niah", "PI"], ["vt", "-"]]
    assert table.rows[-1][2:] == ["not run", "not run"]


def test_evaluation_draws_scores_and_depths(evaluation):
    page = evaluation_page(evaluation)
    (*_, scores), maps = page.introduction, blocks(page, "Passkey retrieval")[1]
    assert isinstance(scores, LinePlot) and [p.title for p in scores.panels] == ["Passkey retrieval", "RULER"]
    assert list(scores.panels[1].lines[0].x) == [64, 128] and scores.panels[1].lines[0].y == [90.0, 40.0]
    assert maps.maps["PI"]["mean"] == [[100.0], [None]] and maps.hidden == "key"
    for figure in (scores, maps):
        plots.png(figure)


def test_evaluation_of_nothing(evaluation):
    evaluation.update(suites={}, not_run=[], comparisons={"reference": "own", "suites": {}})
    page = evaluation_page(evaluation)
    assert [section.title for section in page.sections if section.blocks] == ["Not run", "How to repeat it"]
