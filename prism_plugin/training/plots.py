"""Pictures of a training: learning curve, weights of the experts, and what ELRA or rod flow did."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from prism_plugin.figures import COLORS, save_figure

__all__ = ["plot_elra", "plot_fusion", "plot_learning_curve", "plot_rod_flow", "read_columns", "read_log"]


def plot_fusion(weights: Mapping[str, Sequence[Mapping[str, float]]], path: str | Path) -> None:
    """Draw how much each expert counts, layer by layer, for atoms and for superatoms.

    Args:
        weights: the table of :meth:`~prism_plugin.PRISM.fusion_weights`.
        path: where the PNG goes.
    """
    tables = {nodes: rows for nodes, rows in weights.items() if rows}
    figure = Figure(figsize=(4.2 * max(len(tables), 1), 3.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, max(len(tables), 1), sharey=True))
    colors = {"atomistic": "#1f4e9c", "cell": "#66a61e", "multiscale": "#d95f02", "similarity": "#8da0cb"}
    for panel, (nodes, rows) in zip(panels, tables.items(), strict=False):
        layers = np.arange(1, len(rows) + 1)
        base = np.zeros(len(rows))
        for expert in rows[0]:
            values = np.array([row[expert] for row in rows])
            panel.bar(layers, values, bottom=base, color=colors[expert], label=expert)
            for layer, value, start in zip(layers, values, base, strict=True):
                if value > 0.06:
                    panel.text(layer, start + value / 2, f"{value:.2f}", ha="center", va="center", color="w")
            base += values
        panel.set(title=nodes, xlabel="layer", ylim=(0, 1), xlim=(0.4, max(len(rows), 2) + 0.6))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, fontsize=8)
    panels[0].set_ylabel("fusion weight")
    save_figure(figure, Path(path))


def read_log(folder: str | Path, metric: str = "mae") -> dict[str, np.ndarray]:
    """Read the epochs' errors of a run's log; of an epoch that was run twice the later one counts.

    Args:
        folder: the ``log`` folder of a run, with one ``version_N`` per start or resume.
        metric: ``"mae"``, ``"cross_entropy"`` of a classification, or ``"loss"`` of a potential.

    Returns:
        ``"epoch"``, ``"train_mae"`` and ``"val_mae"`` (or another metric), shape ``(epochs,)`` each; NaN where nothing
        was logged.
    """
    return read_columns(folder, "epoch", (f"train_{metric}", f"val_{metric}"))


def read_columns(folder: str | Path, index: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read columns of all versions of a log by epoch or by step; of what was run twice the later one counts.

    Args:
        folder: the ``log`` folder of a run, with one ``version_N`` per start or resume.
        index: ``"epoch"`` or ``"step"``.
        names: the columns.

    Returns:
        The index and the columns, one shape; NaN where nothing was logged.
    """
    found: dict[int, dict[str, float]] = {}
    versions = sorted(Path(folder).glob("version_*"), key=lambda version: int(version.name.split("_")[1]))
    for version in versions:
        if not (version / "metrics.csv").exists():
            continue
        with open(version / "metrics.csv", newline="") as file:
            for row in csv.DictReader(file):
                values = {name: float(row[name]) for name in names if row.get(name)}
                if values:
                    found.setdefault(int(row[index]), {}).update(values)
    numbers = sorted(found)
    columns = {name: np.array([found[n].get(name, np.nan) for n in numbers]) for name in names}
    return {index: np.array(numbers), **columns}


def plot_learning_curve(
    curves: Mapping[str, np.ndarray],
    metric: str,
    label: str,
    scores: Mapping[str, Any],
    path: str | Path,
    before: float | None = None,
) -> None:
    """Draw training and validation error over the epochs, with the mean predictor's as a line.

    Args:
        curves: what :func:`read_log` gives.
        metric: name of the loss in the log.
        label: what the axis of the loss is called.
        scores: of the validation part.
        path: where the PNG goes.
        before: validation loss of the untouched initial model.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    # The training curve is taken at the moving weights on rotated crystals: it lies above the final error.
    labels = {"train": "train, during the updates", "val": "val"}
    for name, words in labels.items():
        error = curves[f"{name}_{metric}"]
        panel.plot(
            curves["epoch"] + 1, error, marker=".", color=COLORS[name], label=f"{words}; best {np.nanmin(error):.4f}"
        )
    mean_predictor = scores.get(f"mean_predictor_{metric}")
    if mean_predictor is not None:
        words = f"mean predictor on val, {mean_predictor:.4f}"
        panel.axhline(mean_predictor, color="0.5", linestyle="--", label=words)
    if before is not None:
        words = f"untouched initial model on val, {before:.4f}"
        panel.axhline(before, color=COLORS["test"], linestyle=":", label=words)
    panel.set(xlabel="epoch", ylabel=label, yscale="log")
    low, high = panel.get_ylim()
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 4, 5, 6, 7, 8)))
    panel.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.3, which="both")
    panel.legend()
    save_figure(figure, Path(path))


def plot_elra(log: str | Path, path: str | Path) -> None:
    """Draw what ELRA did: alpha and step length, micro-batches per update, soft restarts, over the updates."""
    columns = read_columns(log, "step", ("alpha", "step_length", "accumulate", "retraces"))
    update = columns["step"] + 1
    figure = Figure(figsize=(7, 7), layout="constrained")
    rates, batches, restarts = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    style = {"linewidth": 0.8} if len(update) > 50 else {"linewidth": 0.8, "marker": "."}
    rates.plot(update, columns["alpha"], color=COLORS["val"], label="alpha, the learning rate", **style)
    rates.plot(update, columns["step_length"], color=COLORS["test"], label="length of the step, alpha |G|", **style)
    rates.set(yscale="log")
    rates.legend()
    batches.step(update, columns["accumulate"], color=COLORS["val"], where="post")
    batches.set(ylabel="micro-batches\nper update", ylim=(0, None))
    restarts.step(update, columns["retraces"], color=COLORS["test"], where="post")
    restarts.set(ylabel="soft restarts\nso far", xlabel="update", ylim=(0, None))
    for panel in (batches, restarts):
        panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in (rates, batches, restarts):
        panel.grid(alpha=0.3)
    save_figure(figure, Path(path))


def plot_rod_flow(log: str | Path, path: str | Path) -> None:
    """Draw what rod flow did: losses of center and ends, sharpness along the rod with its threshold, its length."""
    names = ("loss_center", "loss_plus", "loss_minus", "rod_sharpness", "threshold", "rod_length", "open")
    columns = read_columns(log, "step", names)
    update = columns["step"] + 1
    figure = Figure(figsize=(7, 8), layout="constrained")
    losses, edge, lengths = figure.subplots(3, 1, sharex=True)
    losses.plot(update, columns["loss_plus"], color=COLORS["train"], linewidth=0.5, label="plus end")
    losses.plot(update, columns["loss_minus"], color=COLORS["test"], linewidth=0.5, label="minus end")
    losses.plot(update, columns["loss_center"], color=COLORS["val"], linewidth=0.8, label="center")
    losses.set(ylabel="loss of the batch", yscale="log")
    is_open = np.where(columns["open"] > 0, columns["rod_sharpness"], np.nan)
    style = {"linewidth": 0.6} if np.isfinite(is_open).sum() > 50 else {"linewidth": 0.6, "marker": "."}
    ever = "along the open rod" if np.isfinite(is_open).any() else "(the rod was never open)"
    edge.plot(update, is_open, color=COLORS["val"], label=ever, **style)
    edge.plot(update, columns["threshold"], color="k", linewidth=0.8, linestyle="--", label="threshold")
    edge.set(ylabel="effective sharpness", ylim=(0, 2 * float(np.nanmax(columns["threshold"]))))
    lengths.plot(update, np.where(columns["rod_length"] > 0, columns["rod_length"], np.nan), color=COLORS["val"])
    lengths.set(ylabel="half length of the rod", xlabel="update", yscale="log")
    warmup = update[columns["rod_length"] == 0]
    for panel in (losses, edge, lengths):
        panel.grid(alpha=0.3)
        if len(warmup):
            panel.axvspan(warmup[0] - 0.5, warmup[-1] + 0.5, color="0.9", label="warm-up, plain optimizer")
    losses.legend()
    edge.legend()
    save_figure(figure, Path(path))
