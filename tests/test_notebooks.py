"""The notebooks run from top to bottom, and are committed with the outputs of such a run."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_holds_its_outputs(path):
    committed = nbformat.read(path, as_version=4)
    nbformat.validate(committed)
    assert "colab.research.google.com" in committed.cells[0].source and path.name in committed.cells[0].source
    cells = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    run = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parents[1])}}
    NotebookClient(run, timeout=600, kernel_name="python3", resources=resources).execute()
    for before, after in zip(cells, (cell for cell in run.cells if cell.cell_type == "code"), strict=True):
        assert texts(before) == texts(after)
        assert [output.output_type for output in before.outputs] == [output.output_type for output in after.outputs]


def texts(cell):
    """What a cell printed, and its tables; pictures differ with the fonts of a machine."""
    found = [output.get("text") for output in cell.outputs]
    return found + [output.get("data", {}).get("text/markdown") for output in cell.outputs]
