"""The picture of a tracking experiment, as in the papers: a column a network, with loss, sharpness and distance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prism_plugin.figures import save_figure

__all__ = ["plot_tracking"]

ITERATES, ROD, STABLE = "#444444", "#1f4e9c", "#d95f02"


def plot_tracking(
    tables: Mapping[str, Mapping[str, np.ndarray]], titles: Mapping[str, str], optimizer: str, path: str | Path
) -> None:
    """Draw loss, sharpness over the steps with its threshold, and the distance of both flows to the iterates.

    Args:
        tables: columns of every network's run, NaN where there is nothing.
        titles: of every network.
        optimizer: its name.
        path: where the PNG goes.
    """
    figure = Figure(figsize=(5 * len(tables), 9.5), layout="constrained")
    figure.suptitle(f"{optimizer}: the run, rod flow and stable flow")
    panels = figure.subplots(3, len(tables), sharex="col", squeeze=False)
    for column, (name, table) in enumerate(tables.items()):
        loss, edge, distance = panels[:, column]
        step = table["step"]
        loss.plot(step, table["loss"], color=ITERATES, linewidth=0.7, label="iterates")
        mean = (table["loss_plus"] + table["loss_minus"]) / 2
        loss.plot(step, mean, color=ROD, linewidth=1.2, label="rod, mean of its ends")
        loss.plot(step, table["loss_center"], color=ROD, linewidth=0.8, linestyle=":", label="rod, center")
        loss.plot(step, table["loss_stable"], color=STABLE, linewidth=1.2, label="stable flow")
        loss.set(yscale="log")
        loss.set_title(titles[name], fontsize=10)
        _limits(loss, table["loss"])

        edge.plot(step, table["threshold"], color="k", linewidth=0.8, linestyle="--", label="threshold")
        is_open = np.where(table["open"] > 0, table["rod_sharpness"], np.nan)
        edge.plot(step, is_open, color=ROD, linewidth=0.7, alpha=0.7, label="along the open rod (no extra gradient)")
        for key, color, label, mark in (
            ("sharpness", ITERATES, "iterates (Lanczos)", "."),
            ("sharpness_rod", ROD, "rod, center (Lanczos)", "+"),
            ("sharpness_stable", STABLE, "stable flow (Lanczos)", "x"),
        ):
            if key in table:
                there = np.isfinite(table[key])
                edge.plot(
                    step[there], table[key][there], color=color, linewidth=0.6, marker=mark, markersize=4, label=label
                )
        edge.set(ylim=(0, 2 * float(table["threshold"][-1])))

        distance.plot(step, table["distance_stable"], color=STABLE, label="stable flow")
        distance.plot(step, table["distance_rod"], color=ROD, label="rod flow")
        distance.set(yscale="log", xlabel="optimizer step")
        distance.xaxis.set_major_locator(MaxNLocator(integer=True))
        for panel in (loss, edge, distance):
            panel.grid(alpha=0.3)
    for row, label in enumerate(("loss", "effective sharpness", "distance to the iterates' middle")):
        panels[row, 0].set_ylabel(label)
        panels[row, 0].legend(fontsize=8)
    save_figure(figure, Path(path))


def _limits(panel: Axes, values: np.ndarray) -> None:
    """A flow that leaves the picture must not squeeze it."""
    known = values[np.isfinite(values) & (values > 0)]
    if len(known):
        panel.set_ylim(0.3 * known.min(), 3 * known.max())
