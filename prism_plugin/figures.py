"""Figures: the colors of the parts of a data set, and writing them as files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prism_plugin.files import replaced

__all__ = ["COLORS", "save_figure"]

COLORS = {"train": "#8da0cb", "val": "#1f4e9c", "test": "#d95f02", "all": "#1f4e9c"}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, aside first."""
    FigureCanvasAgg(figure)
    with replaced(path) as aside:
        figure.savefig(aside, dpi=150)
