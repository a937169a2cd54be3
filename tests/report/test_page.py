"""A page says the same in Markdown as in its description, and figures are drawn."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from rope_jax.report import figures, plots
from rope_jax.report.html import html
from rope_jax.report.page import Command, Page, Section, Table, counted, markdown, with_interval
from rope_jax.report.write import write_page

LINES = figures.disturbance_per_pair({"pi": [0.0, 0.1, 0.3], "dprope": np.float32([0, 0, 0.2])})
GRID = {"lengths": [4096, 8192], "depths": [0.25, 0.75], "mean": [[0.0, 100.0], [50.0, None]]}
FIGURES = [
    LINES,
    figures.factors_per_pair({"explicit": np.ones((2, 3)), "pi": [2, 2, 2]}),
    figures.training_curves({"pi": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}], "yarn": []}),
    figures.sweep(
        {"intervals": {"x": [90, 180], "curves": {"pi": [20.0, 22.0]}}, "n": {"x": [2], "curves": {"yarn": [5.0]}}},
        {"extended context": 8192},
        logarithmic=["intervals"],
    ),
    figures.depth_maps("ruler", "RULER", {"own": {"a": GRID, "b": GRID}}, "needle"),
    figures.depth_maps("passkey", "Passkey", {method: {"passkey": GRID} for method in ("own", "pi", "yarn")}, "key"),
    # A window that is far shorter than the original context.
    figures.perplexity_by_position(
        {"w": {"own": [{"start": 32, "end": 64, "nll": 1.1, "perplexity": 3.0, "interval": [2.0, 4.0]}]}}, 8192
    ),
    figures.difference_by_position(
        {"pi": [{"start": 2**k, "end": 2 ** (k + 1), "difference": 0.1, "interval": None} for k in range(9)]},
        "yarn",
        64,
    ),
    figures.Histograms("figure_1", "Angles", {"pre-training": {"pair 6": [0.5, 0.5], "pair 22": [0.1, 0.9]}}),
]


def test_markdown_holds_every_block(tmp_path):
    page = Page(
        "A run",
        ["First."],
        [
            Section("Numbers", [Table(["a", "b"], [["1", "x | y"]]), LINES]),
            Section("Nothing", []),
            Section("Again", [Command("python -m it")]),
        ],
    )
    write_page(tmp_path, page)
    assert (tmp_path / "report.md").read_text() == markdown(page)
    assert (tmp_path / "report.html").read_text() == html(page)
    assert (tmp_path / "plots/disturbance.png").read_bytes().startswith(b"\x89PNG")
    blocks = markdown(page).rstrip("\n").split("\n\n")
    assert blocks == [
        *("# A run", "First.", "## Numbers"),
        "| a | b |\n| --- | --- |\n| 1 | x \\| y |",
        *("![Disturbance](plots/disturbance.png)", "## Again", "```\npython -m it\n```"),
    ]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_figures_are_drawn_and_equal_ones_alike(figure):
    image = plots.png(figure)
    assert image.startswith(b"\x89PNG") and image == plots.png(figure)


@pytest.mark.parametrize(
    ("lengths", "original"), [([64], 64), ([64, 128], 16), ([64, 128], 512), ([64, 128, 256], 128)]
)
def test_the_original_context_is_named_within_the_axes(lengths, original):
    cells = {length: {"mean": 50.0, "interval": [40, 60]} for length in lengths}
    canvas = plots._draw_lines(figures.score_by_length({name: {"own": cells} for name in "abc"}, original))
    FigureCanvasAgg(canvas).draw()
    for axes in canvas.axes:
        (text,), box = axes.texts, axes.get_window_extent()
        shown = text.get_window_extent()
        assert box.x0 <= shown.x0 and shown.x1 <= box.x1 and shown.y1 <= box.y1


def test_numbers():
    assert with_interval(5.12345, (4.9, 5.351), (3, 2)) == "5.123 (4.90 to 5.35)"
    assert with_interval(5.12345, None, (2, 1)) == "5.12"
    assert with_interval(None, None, (2, 1)) == "-"
    assert [counted(number, "document") for number in (0, 1, 1000)] == ["0 documents", "1 document", "1,000 documents"]
