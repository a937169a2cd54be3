"""The notebooks run from top to bottom, and are committed with the outputs of such a run."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"), reverse=True)
# It computes for long, and is the last: what its fixture sets stays to the end of this file.
COMPUTES = "angles_and_disturbance"


# What takes most of a notebook's time, and what the tests run.
SIZE, SMALLER = "SMALL_STEPS = 400", "SMALL_STEPS = 60"
VARIES = "varies"  # the tag of a cell whose text and tables differ between machines


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_holds_its_outputs(path, tmp_path, request):
    if path.stem == COMPUTES:
        request.getfixturevalue("optimised")
    committed = nbformat.read(path, as_version=4)
    nbformat.validate(committed)
    assert "colab.research.google.com" in committed.cells[0].source and path.name in committed.cells[0].source
    cells = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    run = nbformat.read(path, as_version=4)
    for cell in run.cells:
        cell.source = cell.source.replace(SIZE, SMALLER)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(run, timeout=600, kernel_name="python3", resources=resources, coalesce_streams=True).execute()
    for before, after in zip(cells, (cell for cell in run.cells if cell.cell_type == "code"), strict=True):
        assert shown(before) == shown(after)


def shown(cell):
    """What a cell printed, and its tables; pictures differ with the fonts of a machine."""
    kinds = [(output.output_type, output.get("name")) for output in cell.outputs]
    if VARIES in cell.metadata.get("tags", ()):
        # Standard error has progress, as fast as the machine is.
        return set(kinds) - {("stream", "stderr")}
    tables = [output.get("data", {}).get("text/markdown") for output in cell.outputs]
    return kinds, [output.get("text") for output in cell.outputs], tables
