"""The notebooks run from their first cell to the last, and what is kept of a run is light and of no machine."""

from __future__ import annotations

import re
from pathlib import Path
from runpy import run_path

import nbformat
import pytest

notebooks = run_path(str(Path(__file__).parents[1] / "docs" / "site" / "notebooks.py"))
NOTEBOOKS = notebooks["NOTEBOOKS"]


def printed(notebook: nbformat.NotebookNode) -> list[int]:
    """Number of outputs of each cell of code."""
    return [len(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
@pytest.mark.filterwarnings("default")  # of the kernel's own connections
def test_a_notebook_runs(path: Path) -> None:
    kept = nbformat.read(path, as_version=4)
    assert printed(notebooks["executed"](path)) == printed(kept)
    assert sum(printed(kept)) > 5
    text = path.read_text()
    assert len(text) < 300_000
    assert not re.search(r"/(tmp|home|root)/|site-packages", text)
