"""Scores of predictions: their names, and how they are laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from prism_plugin.errors import PrismError

__all__ = ["NAMES", "Scores", "check_finite", "format_score", "format_scores", "rms"]

# Part -> name of the score -> number; None where it has no meaning, as ROC AUC among crystals of one class.
Scores: TypeAlias = dict[str, dict[str, Any]]
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


def rms(values: np.ndarray) -> float:
    """Compute the root mean square."""
    return float(np.sqrt(np.square(values).mean()))


def check_finite(predicted: np.ndarray, names: Sequence[str], part: str) -> None:
    """Raise ValueError if a crystal has a prediction that is not finite."""
    bad = np.flatnonzero(~np.isfinite(predicted))
    if len(bad):
        raise PrismError(
            f"the predictions of {len(bad)} of {len(names)} crystals of the {part} part are not finite, the first is "
            f"that of {names[bad[0]]!r}: look at it, or train with a lower learning rate"
        )


def format_score(scores: Mapping[str, Any]) -> str:
    """Format the scores of one part in a line."""
    told = [f"{NAMES[name]} {_number(value)}" for name, value in scores.items() if name in NAMES]
    return f"{', '.join(told)}, {scores['crystals']:,} crystals"


def format_scores(scores: Mapping[str, Mapping[str, Any]], target: str, unit: str) -> str:
    """Format the scores of parts as a table."""
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
