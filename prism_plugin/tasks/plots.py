"""Pictures of predictions: parity, classes, errors by element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.units import GPa
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pymatgen.core import Element
from torchmetrics.functional.classification import binary_roc

from prism_plugin.figures import COLORS, save_figure

__all__ = ["plot_classes", "plot_elements", "plot_parity", "plot_potential"]


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
        panel.scatter(true, predicted, s=size, alpha=0.4, color=COLORS[name], linewidths=0, rasterized=True)
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
        scores: of each split (:func:`~prism_plugin.tasks.potential.score_potential`).
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
            panel.scatter(true, predicted, alpha=0.5, color=COLORS[split], label=label, **style)
        ends = [min(panel.get_xlim()[0], panel.get_ylim()[0]), max(panel.get_xlim()[1], panel.get_ylim()[1])]
        panel.plot(ends, ends, color="0.6", linewidth=1, zorder=0)
        panel.set(xlabel=f"reference {words} ({unit})", ylabel=f"predicted {words} ({unit})", xlim=ends, ylim=ends)
        panel.set_aspect("equal")
        panel.legend(fontsize=8, markerscale=3, loc="upper left")
    save_figure(figure, Path(path))


def plot_classes(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]],
    areas: Mapping[str, float | None],
    target: str,
    path: str | Path,
) -> None:
    """Draw how well probabilities tell two classes apart, and how true they are.

    Args:
        pairs: classes (0 or 1) and predicted probabilities of each split, shape ``(crystals,)`` each.
        areas: area under the ROC curve of each split, None where there is one class only.
        target: name of the property.
        path: where the PNG goes.
    """
    figure = Figure(figsize=(9.6, 4.9), layout="constrained")
    curve, truth = figure.subplots(1, 2)
    for name, (classes, probability) in pairs.items():
        label = f"{name}, {len(classes):,} crystals"
        area = areas[name]
        if area is not None:
            false, true, _ = binary_roc(torch.from_numpy(probability), torch.from_numpy(classes).long())
            curve.plot(false, true, color=COLORS[name], label=f"{label}: area {area:.4f}")
        else:
            curve.plot([], [], color=COLORS[name], label=f"{label}: one class only")
        bins = np.minimum((probability * 10).astype(int), 9)
        filled = np.unique(bins)
        mean = [probability[bins == number].mean() for number in filled]
        share = [classes[bins == number].mean() for number in filled]
        truth.plot(mean, share, marker="o", color=COLORS[name], label=label)
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
    elements: Sequence[np.ndarray],
    errors: np.ndarray,
    target: str,
    unit: str,
    parts: str,
    path: str | Path,
    of: str = "crystals",
) -> None:
    """Draw the mean absolute error of the crystals that hold each element, on the periodic table.

    Args:
        elements: atomic numbers in each crystal, each once.
        errors: prediction minus target, shape ``(crystals,)``.
        target: name of the property.
        unit: its unit.
        parts: which crystals these are, for the title.
        path: where the PNG goes.
        of: what the errors are of, for the title.
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
        row, column = float(element.row), element.group
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
    panel.set_title(f"{label} over the {of} with each element; {len(errors):,} {of} ({parts}), n of them")
    bar = ScalarMappable(scale, colors)
    figure.colorbar(bar, ax=panel, label=label, shrink=0.6, extend="max")
    save_figure(figure, Path(path))
