"""What a model is worth on crystals with targets, and the summary of a run."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from prism_plugin import __version__
from prism_plugin.data import GraphDataset, Record, make_datasets
from prism_plugin.domain import FEWEST, Domain
from prism_plugin.errors import PrismError
from prism_plugin.files import write_json
from prism_plugin.graph.extent import Extent
from prism_plugin.matgl_bridge import weights_digest
from prism_plugin.model import PRISM
from prism_plugin.pretrained import gives_energy
from prism_plugin.schema import as_dict
from prism_plugin.settings import TrainingSettings
from prism_plugin.tables import check_own_output
from prism_plugin.tasks import Task, task_of_records
from prism_plugin.tasks.potential import predict_potential
from prism_plugin.tasks.scores import Scores
from prism_plugin.training.card import card
from prism_plugin.training.checkpoints import CHECKPOINTS
from prism_plugin.training.initial import UNTOUCHED
from prism_plugin.training.plots import plot_elra, plot_fusion, plot_learning_curve, plot_rod_flow, read_log
from prism_plugin.training.run_folder import SETTINGS

__all__ = ["check_crystals_of", "evaluate", "features_and_errors", "measure_domain", "measure_extent", "write_summary"]

_CRYSTALS_AT_ONCE = 256
_ATOMS = 4_000  # of a potential's training crystals; of 1,000 or 8,000 the errors were told apart as well


def write_summary(
    settings: TrainingSettings,
    task: Task,
    model: PRISM,
    datasets: Mapping[str, GraphDataset],
    folder: Path,
    seconds: float,
    epochs: tuple[int, int],
    progress: bool,
    contest: Mapping[str, Any],
) -> dict[str, Any]:
    """Report on the best model of a run; write it, the pictures of the training, and the summary.

    ``epochs``: how many were done, and the number of the best. ``contest``: of a run from an initial model what that
    predicts; if it is the same, which model is kept and the validation losses of all.
    """
    mean = float(datasets["train"].targets.mean())
    scores = task.report(model, datasets, folder, settings.batch_size, progress, mean)
    weights = model.fusion_weights()
    summary = {
        "target": settings.target,
        "unit": model.unit,
        "scores": scores,
        "best_epoch": epochs[1],
        "epochs": epochs[0],
        "seed": settings.seed,
        "seconds_of_this_session": round(seconds, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "fusion_weights": weights,
        **contest,
        "versions": {"prism-plugin": __version__}
        | {name: version(name) for name in ("torch", "matgl", "lightning", "schedulefree")},
        "python": platform.python_version(),
    }
    known = datasets["train"], datasets["val"]
    if contest.get("kept") != UNTOUCHED:
        model.domain = measure_domain(model, *known, settings.batch_size, progress)
        model.extent = measure_extent(model, *known)
    elif model.domain is not None and len(known[1]) >= FEWEST:  # its training crystals were others
        model.domain = model.domain.calibrated(*features_and_errors(model, known[1], settings.batch_size))
    model.save(folder / "model", metadata={"settings": as_dict(settings), "scores": scores})
    sizes = {name: dataset.graphs.atoms for name, dataset in datasets.items()}
    spans = {name: (int(of.min()), int(of.max())) for name, of in sizes.items()}
    told = card(settings, model, scores, spans, contest)
    (folder / "model" / "README.md").write_text(told, encoding="utf-8")
    if any(len(rows[0]) > 1 for rows in weights.values()):  # else one expert has all the weight
        plot_fusion(weights, folder / "fusion.png")
    label = task.metric_label(settings.unit)
    before = contest.get("validation", {}).get(UNTOUCHED)
    curves = read_log(folder / "log", task.metric)
    plot_learning_curve(curves, task.metric, label, scores["val"], folder / "learning_curve.png", before)
    if settings.optimizer == "elra":
        plot_elra(folder / "log", folder / "elra.png")
    if settings.optimizer == "rod-flow":
        plot_rod_flow(folder / "log", folder / "rod_flow.png")
    write_json(folder / "summary.json", summary)
    return summary


def measure_domain(
    model: PRISM, training: GraphDataset, validation: GraphDataset, batch_size: int = 64, progress: bool = True
) -> Domain | None:
    """Measure how far crystals lie from a model's training crystals, and its errors that far out.

    Args:
        model: the model.
        training: what it was trained on.
        validation: what it was not.
        batch_size: most crystals of one batch.
        progress: whether there are progress bars.

    Returns:
        The domain; None with fewer validation crystals than an interval needs.
    """
    if len(validation.names) < FEWEST:
        return None
    each = 1
    if model.domain_of_atoms:
        rng = np.random.default_rng(0)
        training = training.subset(rng.permutation(len(training))[:_ATOMS])
        each = math.ceil(_ATOMS / len(training))
    formulas = (
        Atoms(graph.atomic_numbers.cpu().numpy()).get_chemical_formula("metal", empirical=True)
        for graph in training.graphs
    )
    names = zip(training.names, formulas, strict=True)
    _, seen = model.describe_graphs(training.graphs, batch_size, progress and "describe train")
    if model.domain_of_atoms:
        seen = [of_crystal[rng.permutation(len(of_crystal))[:each]] for of_crystal in seen]
    named = [name for name, one in zip(names, seen, strict=True) for _ in np.atleast_2d(one)]
    held, errors = features_and_errors(model, validation, batch_size, progress and "describe val")
    is_number = model.task_type == "regression"
    digest = weights_digest(model.state_dict())
    return Domain.fit(digest, np.vstack(seen), named, held, errors if is_number else None)


def measure_extent(model: PRISM, training: GraphDataset, validation: GraphDataset) -> Extent | None:
    """Measure distances and volumes of a model's training crystals; None with too few validation crystals."""
    if len(validation.names) < FEWEST:
        return None
    batches = (dataset.graphs.split(_CRYSTALS_AT_ONCE) for dataset in (training, validation))
    return Extent.fit(weights_digest(model.state_dict()), *batches)


def features_and_errors(
    model: PRISM, dataset: GraphDataset, batch_size: int = 64, progress: str | bool = False
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return what a model's domain compares of crystals, and the errors that its intervals are about.

    Returns:
        :meth:`~prism_plugin.PRISM.domain_features` of each, and predictions minus targets, shape ``(n,)``; of a
        potential the largest error of a force in each, eV/Å.
    """
    if model.domain_of_atoms and not dataset.has_forces:
        raise PrismError("the domain of a potential is about forces, which these data do not have")
    predictions, features = model.describe_graphs(dataset.graphs, batch_size, progress)
    if not model.domain_of_atoms:
        return features, predictions.double().cpu().numpy() - dataset.targets.cpu().numpy()
    forces = np.concatenate([np.asarray(of_crystal) for of_crystal in dataset.forces])
    errors = np.linalg.norm(predict_potential(model, dataset, batch_size, progress)["forces"] - forces, axis=1)
    return features, np.maximum.reduceat(errors, np.cumsum([0, *dataset.graphs.atoms[:-1]]))


def check_crystals_of(model: PRISM, records: Sequence[Record]) -> None:
    """Raise ValueError if there is a crystal that the model cannot read; it names the crystal."""
    for record in records:
        try:
            model.check_crystal(set(record.atoms.numbers.tolist()), record.atoms.pbc)
        except ValueError as error:
            raise PrismError(f"crystal {record.name!r}: {error}") from error


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
        model: the model; it computes on the device that it is on.
        parts: records by the name of their part.
        folder: gets ``predictions.csv``, ``parity.png`` (of a classification ``classes.png``) and ``elements.png`` (not
            of a potential); made if missing.
        batch_size: most crystals of one batch.
        progress: whether there are progress bars.
        cache: folder for graphs on disk.

    Returns:
        The scores of each part, beside those of its own mean; where the records have forces those of a potential
        (:func:`~prism_plugin.tasks.potential.score_potential`).

    Raises:
        ValueError: if the folder is that of a run or has other files of these names, a crystal is bad or has an element
            that the model does not know, there is none, or a class is neither 0 nor 1.
    """
    folder = Path(folder)
    if (folder / SETTINGS).exists() or (folder / CHECKPOINTS).exists():
        raise PrismError(f"{str(folder)!r} is the folder of a run, whose predictions are kept; give another one")
    check_own_output(folder, "predictions.csv", ("split", "name"), ("parity.png", "classes.png", "elements.png"))
    records = [record for of_part in parts.values() for record in of_part]
    task = task_of_records(model, records)
    check_crystals_of(model, records)
    if len({record.forces is not None for record in records}) > 1:
        raise PrismError("some of the crystals have forces and some have none; evaluate them one after the other")
    if task.differentiates and not gives_energy(model):
        raise PrismError(f"the data have forces, and the model predicts {model.target}, which is no energy")
    task.check_labels(parts)
    datasets = make_datasets(parts, model.cutoff, model.cell_cutoff, progress, cache, model.has_waves)
    if not datasets:
        raise PrismError("there is no crystal to evaluate")
    return task.report(model, datasets, folder, batch_size, progress)
