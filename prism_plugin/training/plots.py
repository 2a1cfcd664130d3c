"""Pictures of a run: learning curve, parity, and what ELRA or rod flow did."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.units import GPa
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter
from pymatgen.core import Element
from torchmetrics.functional.classification import binary_roc

from prism_plugin.files import replaced
from prism_plugin.training.scores import score

__all__ = [
    "plot_classes",
    "plot_elements",
    "plot_elra",
    "plot_fusion",
    "plot_learning_curve",
    "plot_parity",
    "plot_potential",
    "plot_rod_flow",
    "read_columns",
    "read_log",
    "save_figure",
]

_COLORS = {"train": "#8da0cb", "val": "#1f4e9c", "test": "#d95f02", "all": "#1f4e9c"}


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


def plot_potential(
    pairs: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    scores: Mapping[str, Mapping[str, Any]],
    path: str | Path,
) -> None:
    """Draw energies, forces and stresses against their references.

    Args:
        pairs: of each split ``"energies"`` (eV/atom), ``"forces"`` (eV/Å) and ``"stresses"`` (eV/Å^3): references and
            predictions.
        scores: of each split (:func:`~prism_plugin.training.scores.score_potential`).
        path: where the PNG goes.
    """
    kinds = {
        "energies": ("energy", "eV/atom", 1.0, "energy_rmse", "meV/atom"),
        "forces": ("force components", "eV/Å", 1.0, "forces_rmse", "eV/Å"),
        "stresses": ("stress components", "GPa", GPa, "stress_rmse", "GPa"),
    }
    known = [
        kind for kind in kinds if kind != "stresses" or any(one["stress_rmse"] is not None for one in scores.values())
    ]
    figure = Figure(figsize=(4.6 * len(known), 4.9), layout="constrained")
    for panel, kind in zip(figure.subplots(1, len(known)), known, strict=True):
        words, unit, one, name, unit_of_score = kinds[kind]
        for split, found in pairs.items():
            true, predicted = (values.ravel() / one for values in found[kind])
            rmse = scores[split][name]
            label = split if rmse is None else f"{split}, RMSE {rmse:.3g} {unit_of_score}"
            style: dict[str, Any] = {"s": 2 if len(true) > 2000 else 9, "linewidths": 0, "rasterized": True}
            panel.scatter(true, predicted, alpha=0.5, color=_COLORS[split], label=label, **style)
        ends = [min(panel.get_xlim()[0], panel.get_ylim()[0]), max(panel.get_xlim()[1], panel.get_ylim()[1])]
        panel.plot(ends, ends, color="0.6", linewidth=1, zorder=0)
        panel.set(xlabel=f"reference {words} ({unit})", ylabel=f"predicted {words} ({unit})", xlim=ends, ylim=ends)
        panel.set_aspect("equal")
        panel.legend(fontsize=8, markerscale=3, loc="upper left")
    save_figure(figure, Path(path))


def plot_classes(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], target: str, path: str | Path) -> None:
    """Draw how well probabilities tell two classes apart, and how true they are.

    Args:
        pairs: classes (0 or 1) and predicted probabilities of each split, shape ``(crystals,)`` each.
        target: name of the property.
        path: where the PNG goes.
    """
    figure = Figure(figsize=(9.6, 4.9), layout="constrained")
    curve, truth = figure.subplots(1, 2)
    for name, (classes, probability) in pairs.items():
        label = f"{name}, {len(classes):,} crystals"
        area = score("classification", classes, probability, 0.5)["roc_auc"]
        if area is not None:
            false, true, _ = binary_roc(torch.from_numpy(probability), torch.from_numpy(classes).long())
            curve.plot(false, true, color=_COLORS[name], label=f"{label}: area {area:.4f}")
        else:
            curve.plot([], [], color=_COLORS[name], label=f"{label}: one class only")
        bins = np.minimum((probability * 10).astype(int), 9)
        filled = np.unique(bins)
        mean = [probability[bins == number].mean() for number in filled]
        share = [classes[bins == number].mean() for number in filled]
        truth.plot(mean, share, marker="o", color=_COLORS[name], label=label)
    words = target.replace("_", " ")
    for panel in (curve, truth):
        panel.plot([0, 1], [0, 1], color="0.6", linewidth=1, zorder=0)
        panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    curve.set(title=f"{words}: ROC", xlabel="false positive rate", ylabel="true positive rate")
    truth.set(title=f"{words}: calibration in ten bins", xlabel="predicted probability", ylabel="share of positives")
    save_figure(figure, Path(path))


def plot_elements(
    elements: Sequence[np.ndarray], errors: np.ndarray, target: str, unit: str, parts: str, path: str | Path
) -> None:
    """Draw the mean absolute error of the crystals that hold each element, on the periodic table.

    Args:
        elements: atomic numbers in each crystal, each once.
        errors: prediction minus target, shape ``(crystals,)``.
        target: name of the property.
        unit: its unit.
        parts: which crystals these are, for the title.
        path: where the PNG goes.
    """
    found: dict[int, list[float]] = {}
    for numbers, error in zip(elements, np.abs(errors), strict=True):
        for number in numbers:
            found.setdefault(int(number), []).append(float(error))
    means = {number: float(np.mean(values)) for number, values in found.items()}
    figure = Figure(figsize=(13, 7.2), layout="constrained")
    panel = figure.subplots()
    # Capped at the 95th percentile: one bad element must not take all the colors.
    scale = Normalize(0, float(np.percentile(list(means.values()), 95)) or 1.0)
    colors = colormaps["viridis_r"]
    for number in range(1, 119):
        element = Element.from_Z(number)
        row, column = element.row, element.group
        if element.is_lanthanoid or element.is_actinoid:
            row, column = row + 2.5, 3 + number - (57 if element.is_lanthanoid else 89)
        mean = means.get(number)
        color = "0.93" if mean is None else colors(scale(mean))
        panel.add_patch(Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, facecolor=color))
        dark = mean is not None and scale(mean) > 0.55
        ink: dict[str, Any] = {"ha": "center", "va": "center", "color": "w" if dark else "0.6" if mean is None else "k"}
        panel.text(column, row - 0.2, element.symbol, fontsize=11, **ink)
        if mean is not None:
            panel.text(column, row + 0.1, f"{mean:.3g}", fontsize=7, **ink)
            panel.text(column, row + 0.33, f"n={len(found[number])}", fontsize=6, **ink)
    panel.set(xlim=(0.4, 18.6), ylim=(10.1, 0.4), aspect="equal")
    panel.axis("off")
    label = f"MAE of {target.replace('_', ' ')}" + (f" ({unit})" if unit else "")
    panel.set_title(f"{label} over the crystals with each element; {len(errors):,} crystals ({parts}), n of them")
    bar = ScalarMappable(scale, colors)
    figure.colorbar(bar, ax=panel, label=label, shrink=0.6, extend="max")
    save_figure(figure, Path(path))


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


def plot_learning_curve(log: str | Path, metric: str, unit: str, scores: Mapping[str, Any], path: str | Path) -> None:
    """Draw training and validation error over the epochs, with the mean predictor's as a line.

    Args:
        log: the ``log`` folder of a run.
        metric: ``"mae"``, ``"cross_entropy"``, or ``"loss"`` of a potential.
        unit: of the target.
        scores: of the validation part.
        path: where the PNG goes.
    """
    curves = read_log(log, metric)
    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    # The training curve is taken at the moving weights on rotated crystals: it lies above the final error.
    labels = {"train": "train, during the updates", "val": "val"}
    for name, label in labels.items():
        error = curves[f"{name}_{metric}"]
        panel.plot(
            curves["epoch"] + 1, error, marker=".", color=_COLORS[name], label=f"{label}; best {np.nanmin(error):.4f}"
        )
    mean_predictor = scores.get(f"mean_predictor_{metric}")
    if mean_predictor is not None:
        label = f"mean predictor on val, {mean_predictor:.4f}"
        panel.axhline(mean_predictor, color="0.5", linestyle="--", label=label)
    words = {
        "mae": f"MAE ({unit})" if unit else "MAE",
        "cross_entropy": "cross-entropy (nats)",
        "loss": "loss of energies, forces, stresses",
    }[metric]
    panel.set(xlabel="epoch", ylabel=words, yscale="log")
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
