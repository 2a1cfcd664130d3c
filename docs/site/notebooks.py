"""Run the notebooks of docs/notebooks, and keep what they print and draw: ``python docs/site/notebooks.py``.

Each runs in a folder of its own, which is thrown away.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def executed(path: Path) -> NotebookNode:
    """Return a notebook after a run, without warnings, whose paths are the machine's, and without times.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell raises.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        how = {"resources": {"metadata": {"path": folder}}, "record_timing": False}
        # Lines that a slow machine prints far apart arrive as streams of their own.
        NotebookClient(notebook, timeout=600, kernel_name="python3", coalesce_streams=True, **how).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


if __name__ == "__main__":
    for found in NOTEBOOKS:
        nbformat.write(executed(found), found)
        print(found)
