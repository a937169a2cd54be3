"""Writes a page into a folder, in every form it has."""

from pathlib import Path

from rope_jax.files import write_text
from rope_jax.report import plots
from rope_jax.report.figures import Figure
from rope_jax.report.html import html
from rope_jax.report.page import Page, markdown


def write_page(folder: Path, page: Page) -> None:
    """Writes `report.html`, and `report.md` with `plots/*.png`, into a run's or evaluation's folder."""
    for block in (*page.introduction, *(block for section in page.sections for block in section.blocks)):
        if isinstance(block, Figure):
            plots.save(block, folder / "plots")
    write_text(folder / "report.md", markdown(page))
    write_text(folder / "report.html", html(page))
