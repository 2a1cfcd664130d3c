"""How far predictions are from their targets: the loss of the training and the scores of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from ase.units import GPa
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.classification import binary_auroc

from prism_plugin.data import Record

__all__ = [
    "METRICS",
    "NAMES",
    "Scores",
    "check_classes",
    "format_score",
    "format_scores",
    "loss",
    "rms",
    "score",
    "score_potential",
]

# Part -> name of the score -> number; None where it has no meaning, as ROC AUC among crystals of one class.
Scores: TypeAlias = dict[str, dict[str, Any]]
# What is trained, and what decides which epoch is the best.
METRICS = {"regression": "mae", "classification": "cross_entropy", "potential": "loss"}
NAMES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "mean_predictor_mae": "MAE of the mean",
    "cross_entropy": "cross-entropy",
    "mean_predictor_cross_entropy": "of the mean",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "roc_auc": "ROC AUC",
    "energy_mae": "E MAE (meV/atom)",
    "energy_rmse": "E RMSE (meV/atom)",
    "forces_mae": "F MAE (eV/Å)",
    "forces_rmse": "F RMSE (eV/Å)",
    "rms_forces": "rms F (eV/Å)",
    "stress_rmse": "S RMSE (GPa)",
}


def check_classes(parts: Mapping[str, Sequence[Record]]) -> None:
    """Raise ValueError unless the targets of all parts are 0 and 1."""
    for part, records in parts.items():
        for record in records:
            if record.target not in (0, 1):
                raise ValueError(
                    f"crystal {record.name!r} of the {part} part has the target {record.target:g}: a classification "
                    "needs 0 and 1, or false and true"
                )


def loss(task_type: str, output: Tensor, target: Tensor) -> Tensor:
    """Loss of each crystal, shape ``(crystals,)``: L1 on the raw target, or the cross-entropy of log-odds in nats.

    Args:
        task_type: of the model.
        output: what the model reads out (:meth:`~prism_plugin.PRISM.read_out`), shape ``(crystals,)``.
        target: shape ``(crystals,)``; 0 or 1 in a classification.
    """
    if task_type == "classification":
        return functional.binary_cross_entropy_with_logits(output, target, reduction="none")
    return functional.l1_loss(output, target, reduction="none")


def score(task_type: str, target: np.ndarray, prediction: np.ndarray, constant: float) -> dict[str, Any]:
    """Score predictions, and beside them a constant.

    Args:
        task_type: of the model.
        target: shape ``(crystals,)``.
        prediction: shape ``(crystals,)``; probabilities in a classification.
        constant: what the mean predictor says.

    Returns:
        MAE and RMSE; or cross-entropy (nats), accuracy and balanced accuracy at a threshold of 1/2 and area under the
        ROC curve (the last two None where there is one class only); that of the mean predictor; number of crystals.
    """
    if task_type == "regression":
        error = prediction - target
        scores: dict[str, Any] = {
            "mae": float(np.abs(error).mean()),
            "rmse": rms(error),
            "mean_predictor_mae": float(np.abs(target - constant).mean()),
        }
    else:
        right = (prediction > 0.5) == (target == 1)
        both = 0 < target.mean() < 1
        scores = {
            "cross_entropy": _cross_entropy(target, prediction),
            "mean_predictor_cross_entropy": _cross_entropy(target, np.full_like(prediction, constant)),
            "accuracy": float(right.mean()),
            "balanced_accuracy": float(np.mean([right[target == one].mean() for one in (0, 1)])) if both else None,
            "roc_auc": float(binary_auroc(torch.from_numpy(prediction), torch.from_numpy(target).long()))
            if both
            else None,
        }
    return {**scores, "crystals": len(target)}


def score_potential(
    energies: tuple[np.ndarray, np.ndarray],
    forces: tuple[np.ndarray, np.ndarray],
    stresses: tuple[np.ndarray, np.ndarray],
) -> dict[str, Any]:
    """Score a potential; each argument is references and predictions.

    Args:
        energies: eV per atom, shape ``(crystals,)`` each.
        forces: eV/Å, shape ``(atoms, 3)`` each.
        stresses: eV/Å^3, shape ``(crystals, 3, 3)`` each; a reference that is NaN is left out.

    Returns:
        MAE and RMSE of energies (meV/atom) and of the components of the forces (eV/Å), beside the root mean square of
        the reference forces; RMSE of the stresses' components (GPa), None where none is known; number of crystals.
    """
    of_energy, of_forces, of_stress = (predicted - given for given, predicted in (energies, forces, stresses))
    of_stress = of_stress[np.isfinite(stresses[0])]
    return {
        "energy_mae": 1000 * float(np.abs(of_energy).mean()),
        "energy_rmse": 1000 * rms(of_energy),
        "forces_mae": float(np.abs(of_forces).mean()),
        "forces_rmse": rms(of_forces),
        "rms_forces": rms(forces[0]),
        "stress_rmse": rms(of_stress) / GPa if len(of_stress) else None,
        "crystals": len(of_energy),
    }


def rms(values: np.ndarray) -> float:
    """Compute the root mean square."""
    return float(np.sqrt(np.square(values).mean()))


def _cross_entropy(target: np.ndarray, probability: np.ndarray) -> float:
    return float(functional.binary_cross_entropy(torch.from_numpy(probability), torch.from_numpy(target)))


def format_score(scores: Mapping[str, Any]) -> str:
    """Lay out the scores of one part in a line."""
    told = [f"{NAMES[name]} {_number(value)}" for name, value in scores.items() if name in NAMES]
    return f"{', '.join(told)}, {scores['crystals']:,} crystals"


def format_scores(scores: Mapping[str, Mapping[str, Any]], target: str, unit: str) -> str:
    """Lay out the scores of parts as a table."""
    head = f"{target} ({unit})" if unit else target
    columns = [name for name in NAMES if name in next(iter(scores.values()))]
    widths = {name: max(9, len(NAMES[name])) for name in columns}
    lines = [
        " ".join([f"{'split':<6} {'crystals':>9}", *(f"{NAMES[name]:>{widths[name]}}" for name in columns)])
        + f"   {head}"
    ]
    for part, found in scores.items():
        numbers = (f"{_number(found[name]):>{widths[name]}}" for name in columns)
        lines.append(" ".join([f"{part:<6} {found['crystals']:>9}", *numbers]))
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
