"""What a model is worth on crystals with targets: predictions, scores and pictures of the errors."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prism_plugin.data import GraphDataset, Record, make_datasets
from prism_plugin.files import replaced
from prism_plugin.model import PRISM
from prism_plugin.training.plots import plot_classes, plot_elements, plot_parity
from prism_plugin.training.scores import Scores, check_classes, score

__all__ = ["evaluate", "write_report"]


def write_report(
    model: PRISM,
    datasets: Mapping[str, GraphDataset],
    folder: Path,
    batch_size: int,
    progress: bool,
    mean: float | None = None,
) -> Scores:
    """Predict every part; write ``predictions.csv``, ``parity.png`` (or ``classes.png``) and ``elements.png``.

    Args:
        model: the model.
        datasets: the parts, built with the model's cutoffs.
        folder: where the files go.
        batch_size: most crystals of one batch.
        progress: whether there are progress bars.
        mean: what the mean predictor says; None takes each part's own mean, the best that a constant can do.

    Returns:
        The scores of each part (:func:`~prism_plugin.training.scores.score`).

    Raises:
        ValueError: if a prediction is not finite; names the first.
    """
    rows: list[tuple[Any, ...]] = [("split", "name", "atoms", "target", "prediction")]
    scores: Scores = {}
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, dataset in datasets.items():
        prediction = model.predict_graphs(dataset.graphs, batch_size, progress=progress and f"predict {name}")
        predicted, target = prediction.double().cpu().numpy(), dataset.targets.numpy()
        bad = np.flatnonzero(~np.isfinite(predicted))
        if len(bad):
            raise ValueError(
                f"the predictions of {len(bad)} of {len(dataset)} crystals of the {name} part are not finite, "
                f"the first is that of {dataset.names[bad[0]]!r}: look at it, or train with a lower learning rate"
            )
        pairs[name] = (target, predicted)
        scores[name] = score(model.task_type, target, predicted, float(target.mean()) if mean is None else mean)
        for crystal, size, true, given in zip(dataset.names, dataset.graphs.atoms, target, predicted, strict=True):
            rows.append((name, crystal, size, f"{true:.8g}", f"{given:.8g}"))
    with replaced(folder / "predictions.csv") as path, open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    label = model.target
    if model.task_type == "classification":
        label = f"P({model.target})"
        plot_classes(pairs, model.target, folder / "classes.png")
    else:
        plot_parity(pairs, model.target, model.unit, folder / "parity.png")
    scored = [name for name in datasets if name != "train"] or list(datasets)
    errors = np.concatenate([pairs[name][1] - pairs[name][0] for name in scored])
    elements = [graph.atomic_numbers.unique().numpy() for name in scored for graph in datasets[name].graphs]
    plot_elements(elements, errors, label, model.unit, " + ".join(scored), folder / "elements.png")
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
        folder: gets ``predictions.csv``, ``parity.png`` (of a classification ``classes.png``) and ``elements.png``;
            made if missing.
        batch_size: most crystals of one batch.
        progress: whether there are progress bars.
        cache: folder for graphs on disk.

    Returns:
        The scores of each part, beside those of its own mean (:func:`~prism_plugin.training.scores.score`).

    Raises:
        ValueError: if the folder is that of a run, a crystal is bad or has an element that the model does not know,
            there is none, or a class is neither 0 nor 1.
    """
    folder = Path(folder)
    if (folder / "settings.json").exists() or (folder / "checkpoints").exists():
        raise ValueError(f"{str(folder)!r} is the folder of a run, whose predictions are kept; give another one")
    if model.task_type == "classification":
        check_classes(parts)
    for records in parts.values():
        for record in records:
            try:
                model.check_elements(torch.from_numpy(record.atoms.numbers))
            except ValueError as error:
                raise ValueError(f"crystal {record.name!r}: {error}") from error
    datasets = make_datasets(parts, model.cutoff, model.cell_cutoff, progress, cache)
    if not datasets:
        raise ValueError("there is no crystal to evaluate")
    return write_report(model, datasets, folder, batch_size, progress)
