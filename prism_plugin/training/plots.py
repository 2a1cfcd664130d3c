"""Pictures of a run: learning curve, parity, and what ELRA or rod flow did."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from prism_plugin.files import replaced

__all__ = [
    "plot_elra",
    "plot_learning_curve",
    "plot_parity",
    "plot_rod_flow",
    "read_columns",
    "read_log",
    "save_figure",
]

_COLORS = {"train": "#8da0cb", "val": "#1f4e9c", "test": "#d95f02"}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, aside first."""
    FigureCanvasAgg(figure)
    with replaced(path) as aside:
        figure.savefig(aside, dpi=150)


def plot_parity(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], target: str, unit: str, path: str | Path) -> None:
    """Draw predictions against targets, one panel per split.

    Args:
        pairs: targets and predictions of each split, shape ``(crystals,)`` each.
        target: name of the property.
        unit: its unit.
        path: where the PNG goes.
    """
    figure = Figure(figsize=(4.6 * len(pairs), 5.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(pairs), sharex=True, sharey=True))
    values = np.concatenate([np.concatenate(pair) for pair in pairs.values()])
    margin = 0.03 * (values.max() - values.min() or 1.0)
    ends = [values.min() - margin, values.max() + margin]
    label = f"{target.replace('_', ' ')} ({unit})" if unit else target.replace("_", " ")
    for panel, (name, (true, predicted)) in zip(panels, pairs.items(), strict=True):
        panel.plot(ends, ends, color="0.6", linewidth=1, zorder=0)
        size = 3 if len(true) > 2000 else 9
        panel.scatter(true, predicted, s=size, alpha=0.4, color=_COLORS[name], linewidths=0, rasterized=True)
        panel.set(title=f"{name}: {len(true):,} crystals, MAE {np.abs(predicted - true).mean():.4f} {unit}".rstrip())
        panel.set(xlabel=f"reference {label}", xlim=ends, ylim=ends, aspect="equal")
    panels[0].set_ylabel(f"predicted {label}")
    save_figure(figure, Path(path))


def read_log(folder: str | Path) -> dict[str, np.ndarray]:
    """Read the epochs' MAEs of a run's log; of an epoch that was run twice the later one counts.

    Args:
        folder: the ``log`` folder of a run, with one ``version_N`` per start or resume.

    Returns:
        ``"epoch"``, ``"train_mae"`` and ``"val_mae"``, shape ``(epochs,)`` each; NaN where nothing was logged.
    """
    return read_columns(folder, "epoch", ("train_mae", "val_mae"))


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


def plot_learning_curve(log: str | Path, unit: str, mean_predictor: float, path: str | Path) -> None:
    """Draw training and validation MAE over the epochs, with the mean predictor's as a line."""
    curves = read_log(log)
    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    # The training curve is taken at the moving weights on rotated crystals: it lies above the final error.
    labels = {"train": "train, during the updates", "val": "val"}
    for name, label in labels.items():
        mae = curves[f"{name}_mae"]
        panel.plot(
            curves["epoch"] + 1, mae, marker=".", color=_COLORS[name], label=f"{label}; best {np.nanmin(mae):.4f}"
        )
    panel.axhline(mean_predictor, color="0.5", linestyle="--", label=f"mean predictor on val, {mean_predictor:.4f}")
    panel.set(xlabel="epoch", ylabel=f"MAE ({unit})" if unit else "MAE", yscale="log")
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
    rates.plot(update, columns["alpha"], color=_COLORS["val"], label="alpha, the learning rate", **style)
    rates.plot(update, columns["step_length"], color=_COLORS["test"], label="length of the step, alpha |G|", **style)
    rates.set(yscale="log")
    rates.legend()
    batches.step(update, columns["accumulate"], color=_COLORS["val"], where="post")
    batches.set(ylabel="micro-batches\nper update", ylim=(0, None))
    restarts.step(update, columns["retraces"], color=_COLORS["test"], where="post")
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
    losses.plot(update, columns["loss_plus"], color=_COLORS["train"], linewidth=0.5, label="plus end")
    losses.plot(update, columns["loss_minus"], color=_COLORS["test"], linewidth=0.5, label="minus end")
    losses.plot(update, columns["loss_center"], color=_COLORS["val"], linewidth=0.8, label="center")
    losses.set(ylabel="loss of the batch", yscale="log")
    is_open = np.where(columns["open"] > 0, columns["rod_sharpness"], np.nan)
    style = {"linewidth": 0.6} if np.isfinite(is_open).sum() > 50 else {"linewidth": 0.6, "marker": "."}
    ever = "along the open rod" if np.isfinite(is_open).any() else "(the rod was never open)"
    edge.plot(update, is_open, color=_COLORS["val"], label=ever, **style)
    edge.plot(update, columns["threshold"], color="k", linewidth=0.8, linestyle="--", label="threshold")
    edge.set(ylabel="effective sharpness", ylim=(0, 2 * float(np.nanmax(columns["threshold"]))))
    lengths.plot(update, np.where(columns["rod_length"] > 0, columns["rod_length"], np.nan), color=_COLORS["val"])
    lengths.set(ylabel="half length of the rod", xlabel="update", yscale="log")
    warmup = update[columns["rod_length"] == 0]
    for panel in (losses, edge, lengths):
        panel.grid(alpha=0.3)
        if len(warmup):
            panel.axvspan(warmup[0] - 0.5, warmup[-1] + 0.5, color="0.9", label="warm-up, plain optimizer")
    losses.legend()
    edge.legend()
    save_figure(figure, Path(path))
