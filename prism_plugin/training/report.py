"""What a model is worth on crystals with targets: predictions, scores and pictures of the errors."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prism_plugin.data import GraphDataset, Record
from prism_plugin.files import replaced
from prism_plugin.model import PRISM
from prism_plugin.training.plots import plot_elements, plot_parity

__all__ = ["evaluate", "format_scores", "write_report"]

Scores = dict[str, dict[str, float]]


def write_report(
    model: PRISM,
    datasets: Mapping[str, GraphDataset],
    folder: Path,
    batch_size: int,
    progress: bool,
    mean: float | None = None,
) -> Scores:
    """Predict every part; write ``predictions.csv``, ``parity.png`` and ``elements.png``.

    Args:
        model: the model.
        datasets: the parts, built with the model's cutoffs.
        folder: where the files go.
        batch_size: most crystals of one batch.
        progress: whether there are progress bars.
        mean: what the mean predictor says; None takes each part's own mean, the best that a constant can do.

    Returns:
        MAE, RMSE, the mean predictor's MAE and the number of crystals of each part.
    """
    rows: list[tuple[Any, ...]] = [("split", "name", "atoms", "target", "prediction")]
    scores: Scores = {}
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, dataset in datasets.items():
        prediction = model.predict_graphs(dataset.graphs, batch_size, progress=progress and f"predict {name}")
        predicted, target = prediction.double().cpu().numpy(), dataset.targets.numpy()
        pairs[name] = (target, predicted)
        error = predicted - target
        scores[name] = {
            "mae": float(np.abs(error).mean()),
            "rmse": float(np.sqrt((error**2).mean())),
            "mean_predictor_mae": float(np.abs(target - (target.mean() if mean is None else mean)).mean()),
            "crystals": len(dataset),
        }
        for crystal, size, true, given in zip(dataset.names, dataset.graphs.atoms, target, predicted, strict=True):
            rows.append((name, crystal, size, f"{true:.8g}", f"{given:.8g}"))
    with replaced(folder / "predictions.csv") as path, open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    plot_parity(pairs, model.target, model.unit, folder / "parity.png")
    scored = [name for name in datasets if name != "train"] or list(datasets)
    errors = np.concatenate([pairs[name][1] - pairs[name][0] for name in scored])
    elements = [graph.atomic_numbers.unique().numpy() for name in scored for graph in datasets[name].graphs]
    plot_elements(elements, errors, model.target, model.unit, " + ".join(scored), folder / "elements.png")
    return scores


def evaluate(
    model: PRISM,
    parts: Mapping[str, Sequence[Record]],
    folder: str | Path,
    batch_size: int = 64,
    progress: bool = True,
    cache: str | Path | None = None,
) -> Scores:
    """Score a trained model on crystals with targets and write its report.

    Args:
        model: the model; where it is, there it computes.
        parts: records by the name of their part.
        folder: gets ``predictions.csv``, ``parity.png`` and ``elements.png``; made if missing.
        batch_size: most crystals of one batch.
        progress: whether there are progress bars.
        cache: folder for graphs on disk.

    Returns:
        MAE, RMSE, MAE of the part's own mean, and number of crystals of each part.

    Raises:
        ValueError: if the folder is that of a run, a crystal is bad or has an element that the model does not know, or
            there is none.
    """
    folder = Path(folder)
    if (folder / "settings.json").exists() or (folder / "checkpoints").exists():
        raise ValueError(f"{str(folder)!r} is the folder of a run, whose predictions are kept; give another one")
    datasets = {}
    for name, records in parts.items():
        for record in records:
            try:
                model.check_elements(torch.from_numpy(record.atoms.numbers))
            except ValueError as error:
                raise ValueError(f"crystal {record.name!r}: {error}") from error
        if records:
            datasets[name] = GraphDataset(records, model.cutoff, model.cell_cutoff, name, progress, cache)
    if not datasets:
        raise ValueError("there is no crystal to evaluate")
    return write_report(model, datasets, folder, batch_size, progress)


def format_scores(scores: Scores, target: str, unit: str) -> str:
    """Lay out scores as a table."""
    head = f"{target} ({unit})" if unit else target
    lines = [f"{'split':<6} {'crystals':>9} {'MAE':>9} {'RMSE':>9} {'MAE of the mean':>16}   {head}"]
    for name, score in scores.items():
        lines.append(
            f"{name:<6} {score['crystals']:>9} {score['mae']:>9.4f} {score['rmse']:>9.4f} "
            f"{score['mean_predictor_mae']:>16.4f}"
        )
    return "\n".join(lines)
