"""The page of a study says what its table holds."""

import numpy as np
import pytest

from rope_jax.report import plots
from rope_jax.report.figures import LinePlot
from rope_jax.report.page import Table as Cells
from rope_jax.report.page import markdown
from rope_jax.study.analysis import Table, compare, correlations, exact_recall, learning_curves
from rope_jax.study.page import study_page

GROUPS = (("2x64", 64), ("2x64", 128))
# What each vector adds to the loss beyond L, and what it costs.
EFFECTS = {
    "yarn": 0.0,
    "pi": 0.2,
    "dprope": -0.1,
    "extrapolation": 0.5,
    "dprope_n8": -0.05,
    "yarn@1": 0.05,
    "yarn@1.1": -0.02,
    "ramp 0": 0.3,
    "mask 1": 0.4,
}
METHODS = ("yarn", "pi", "dprope", "extrapolation")


def recall(rng, rows, hits):
    counts = np.full((rows, 2), 4.0)
    distance = np.full(8, rows)
    values = {"count": counts, "hits": counts * hits, "nll": counts * (2 - hits), "without": counts * 4}
    return {name: {"distance": (distance * x.mean() / 4).tolist(), "rows": x.tolist()} for name, x in values.items()}


def measured(shape, context, seed, extension, stage, vector):
    rng = np.random.default_rng(seed)
    effect = EFFECTS[vector] / (1 if stage == "zero_shot" else 4)
    documents = rng.normal(4, 1, (5, 1)) + np.array([0, 0, effect, effect]) + rng.normal(0, 1e-3, (5, 4))
    line = {"kind": "measured", "shape": shape, "context": context, "seed": seed, "extension": extension}
    line |= {"stage": stage, "vector": vector, "seconds": 1.0, "documents": documents.tolist()}
    line |= {"position": np.linspace(5, 4 + effect, 8 * extension).tolist()}
    line |= {"facts": recall(rng, 3, 0.5), "asked": recall(rng, 2, 0.25)}
    return line | (
        {} if stage == "zero_shot" else {"tokens": 1000, "losses": (4 + effect * np.arange(1, 0, -0.1)).tolist()}
    )


@pytest.fixture(scope="module")
def lines():
    found = [{"kind": "study", "command": "python -m experiments.study", "versions": {"jax": "1"}, "config": {}}]
    for shape, context in GROUPS:
        for vector, effect in EFFECTS.items():
            costs = {"disturbance": [1.0, 1 + effect], "Wasserstein": [1.0, 1 - effect]}
            found.append({"kind": "vector", "context": context, "extension": 4, "vector": vector, "costs": costs})
            found[-1]["attention_factor"] = float(vector.partition("@")[2] or 1.14)
        for seed in range(2):
            about = {"shape": shape, "context": context, "seed": seed}
            found.append({"kind": "model", **about, "without_embeddings": 1, "tokens": 10, "seconds": 3600.0})
            found[-1]["energy"] = [2.0, 0.0] if seed else [0.0, 2.0]
            found += [measured(**about, extension=4, stage="zero_shot", vector=vector) for vector in EFFECTS]
            found += [
                measured(**about, extension=4, stage=stage, vector=vector)
                for stage in ("tuned", "skipped")
                for vector in METHODS
            ]
    return found


def test_differences_are_those_of_the_table(lines):
    found = compare(Table(lines).measured(4, "zero_shot"), "beyond")
    for vector, difference in found.items():
        assert difference.mean == pytest.approx(EFFECTS[vector], abs=2e-3)
        assert difference.together[0] <= difference.mean <= difference.together[1]
        assert len(difference.seeds) == 4
    assert found["pi"].together[0] > 0 > found["dprope"].together[1]
    short = compare(Table(lines).measured(4, "zero_shot"), "short")
    assert short["pi"].mean == pytest.approx(0, abs=2e-3)


def test_a_model_that_is_not_finished_waits(lines):
    cut = [line for line in lines if (line.get("context"), line.get("seed"), line.get("vector")) != (128, 1, "pi")]
    measured = Table(cut).measured(4, "zero_shot")
    assert {len(found) for found in measured.values()} == {3}
    assert "pi" in measured


def test_what_orders_vectors_correlates(lines):
    found = correlations(Table(lines), GROUPS[0], 4)
    assert found["disturbance"]["beyond"].value == pytest.approx(1)
    assert found["Wasserstein"]["beyond"].value == pytest.approx(-1)
    # The second model does not use the pair that differs.
    assert found["disturbance, by energy"]["beyond"].seeds == pytest.approx((1, 0))


def test_recall_and_learning_curves(lines):
    measured = Table(lines).measured(4, "zero_shot")
    assert exact_recall(measured["pi"]) == pytest.approx((0.4, 0.4))  # 12 at a half, 8 at a quarter
    tokens, losses = learning_curves(Table(lines), 4, "tuned")["pi"]
    assert losses == pytest.approx((0.05 * np.arange(1, 0, -0.1)).tolist())
    assert tokens[0] == 50 and tokens[-1] == 950


def test_the_page_has_a_section_for_each_comparison(lines):
    page = study_page(lines)
    titles = [section.title for section in page.sections]
    assert {"s = 4, zero-shot", "s = 4, fine-tuned", "s = 4, fine-tuned with skipped positions"} <= set(titles)
    table = next(b for s in page.sections if s.title == "s = 4, zero-shot" for b in s.blocks if isinstance(b, Cells))
    assert [row[0] for row in table.rows] == ["DPRoPE", "YaRN", "PI", "extrapolation"]
    assert table.rows[2][1].startswith("**+0.2") and table.rows[2][1].endswith("4 of 4")
    text = markdown(page)
    for shown in (
        "4 models",
        "L = 64",
        "python -m experiments.study",
        "4.0 of pre-training",
        "+1.00",
        "interpolated dimensions 8",
        "| 1.100 |",
    ):
        assert shown in text, shown
    drawn = [block for section in page.sections for block in section.blocks if isinstance(block, LinePlot)]
    assert len({figure.name for figure in drawn}) == len(drawn)
    assert plots.png(drawn[0]).startswith(b"\x89PNG")


def test_a_table_of_models_alone_has_a_page(lines):
    text = markdown(study_page([line for line in lines if line["kind"] in ("study", "model")]))
    assert "4 models" in text and "zero-shot" not in text
