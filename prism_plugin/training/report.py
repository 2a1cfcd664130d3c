"""What a model is worth on crystals with targets: predictions, scores and pictures of the errors."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from prism_plugin.data import GraphDataset, Record, make_datasets
from prism_plugin.files import replaced
from prism_plugin.forces import EDGES_WITH_GRADIENTS, energies_with_gradients, plain_computation
from prism_plugin.model import PRISM, split_graphs
from prism_plugin.pretrained import gives_energy
from prism_plugin.training.plots import plot_classes, plot_elements, plot_parity, plot_potential
from prism_plugin.training.scores import Scores, check_classes, rms, score, score_potential

__all__ = ["evaluate", "write_potential_report", "write_report"]


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
        _check_finite(predicted, dataset.names, name)
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
    elements = [datasets[name].graphs.elements(number) for name in scored for number in range(len(datasets[name]))]
    plot_elements(elements, errors, label, model.unit, " + ".join(scored), folder / "elements.png")
    return scores


def write_potential_report(
    model: PRISM, datasets: Mapping[str, GraphDataset], folder: Path, batch_size: int, progress: bool
) -> Scores:
    """Predict every part; write ``predictions.csv`` and ``parity.png``, of energies, forces and stresses.

    Args:
        model: a model of energies.
        datasets: the parts, with forces, built with the model's cutoffs.
        folder: where the files go.
        batch_size: most crystals of one batch.
        progress: whether there are progress bars.

    Returns:
        The scores of each part (:func:`~prism_plugin.training.scores.score_potential`).

    Raises:
        ValueError: if a prediction is not finite; names the first.
    """
    rows: list[tuple[Any, ...]] = [("split", "name", "atoms", "energy", "predicted energy", "forces rmse")]
    scores: Scores = {}
    pairs: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for name, dataset in datasets.items():
        found = _predict_potential(model, dataset, batch_size, progress and f"predict {name}")
        sizes = dataset.graphs.atoms
        energies = dataset.targets.numpy()
        forces = np.concatenate([np.asarray(of_crystal) for of_crystal in dataset.forces])
        stresses = dataset.stress(range(len(dataset))).numpy()
        errors = np.split(found["forces"] - forces, np.cumsum(sizes)[:-1])
        rmse = np.array([rms(error) for error in errors])
        _check_finite(found["energy"] + rmse, dataset.names, name)
        pairs[name] = {
            "energies": (energies / sizes, found["energy"] / sizes),
            "forces": (forces, found["forces"]),
            "stresses": (np.where(np.isnan(found["stress"]), np.nan, stresses), found["stress"]),
        }
        scores[name] = score_potential(**pairs[name])
        for crystal, *numbers in zip(dataset.names, sizes, energies, found["energy"], rmse, strict=True):
            rows.append((name, crystal, *(f"{number:.12g}" for number in numbers)))
    with replaced(folder / "predictions.csv") as path, open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    plot_potential(pairs, scores, folder / "parity.png")
    return scores


def _check_finite(predicted: np.ndarray, names: Sequence[str], part: str) -> None:
    """Raise ValueError if a crystal has a prediction that is not finite."""
    bad = np.flatnonzero(~np.isfinite(predicted))
    if len(bad):
        raise ValueError(
            f"the predictions of {len(bad)} of {len(names)} crystals of the {part} part are not finite, the first is "
            f"that of {names[bad[0]]!r}: look at it, or train with a lower learning rate"
        )


def _predict_potential(
    model: PRISM, dataset: GraphDataset, batch_size: int, progress: str | bool
) -> dict[str, np.ndarray]:
    """Total energies, forces and stresses of all crystals, in order."""
    answers: dict[str, list[np.ndarray]] = {"energy": [], "forces": [], "stress": []}
    with (
        plain_computation(model),
        tqdm(total=len(dataset), desc=str(progress), unit="crystal", disable=not progress) as bar,
    ):
        for part in split_graphs(dataset.graphs, batch_size, EDGES_WITH_GRADIENTS):
            found = energies_with_gradients(model, part)
            for name, of_batch in answers.items():
                of_batch.append(getattr(found, name).double().cpu().numpy())
            bar.update(len(part))
    return {name: np.concatenate(values) for name, values in answers.items()}


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
        folder: gets ``predictions.csv``, ``parity.png`` (of a classification ``classes.png``) and ``elements.png`` (not
            of a potential); made if missing.
        batch_size: most crystals of one batch.
        progress: whether there are progress bars.
        cache: folder for graphs on disk.

    Returns:
        The scores of each part, beside those of its own mean (:func:`~prism_plugin.training.scores.score`); where the
        records have forces those of a potential (:func:`~prism_plugin.training.scores.score_potential`).

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
                model.check_elements(set(record.atoms.numbers.tolist()))
            except ValueError as error:
                raise ValueError(f"crystal {record.name!r}: {error}") from error
    have = {record.forces is not None for records in parts.values() for record in records}
    if len(have) > 1:
        raise ValueError("some of the crystals have forces and some have none; evaluate them one after the other")
    forces = True in have
    if forces and not gives_energy(model):
        raise ValueError(f"the data have forces, and the model predicts {model.target}, which is no energy")
    datasets = make_datasets(parts, model.cutoff, model.cell_cutoff, progress, cache)
    if not datasets:
        raise ValueError("there is no crystal to evaluate")
    if forces:
        return write_potential_report(model, datasets, folder, batch_size, progress)
    return write_report(model, datasets, folder, batch_size, progress)
