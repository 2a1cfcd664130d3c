"""One of two classes for each crystal: cross-entropy of the log-odds; accuracy and area under the ROC curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prism_plugin.errors import PrismError
from prism_plugin.tasks.regression import L1Loss, Regression
from prism_plugin.tasks.task import Loss

if TYPE_CHECKING:
    from torch import Tensor

    from prism_plugin.data.records import Record
    from prism_plugin.model import PRISM
    from prism_plugin.settings import TrainingSettings

__all__ = ["Classification", "CrossEntropy"]


class CrossEntropy(L1Loss):
    """Cross-entropy of each crystal's log-odds, nats."""

    metric = "cross_entropy"

    def of_outputs(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the losses of log-odds; targets are 0 or 1; all of shape ``(crystals,)``."""
        from torch.nn import functional

        return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")


class Classification(Regression):
    """Predict the probability of the second of two classes."""

    name: ClassVar[str] = "classification"
    metric: ClassVar[str] = "cross_entropy"

    def check_records(self, settings: TrainingSettings, parts: Mapping[str, Sequence[Record]]) -> None:
        """Raise ValueError unless there are two classes to learn."""
        super().check_records(settings, parts)
        self.check_labels(parts)
        if len({record.target for record in parts["train"]}) < 2:
            raise PrismError("all training crystals are of one class: there is nothing to tell apart")

    def label_problem(self, record: Record) -> str:
        """Describe what is wrong with a target that is no class."""
        if record.target in (0, 1):
            return ""
        return f"the target {record.target:g}: a classification needs 0 and 1, or false and true"

    def unit_of(self, model: PRISM) -> str:
        """Return what stands in the place of a unit."""
        return "probability"

    def metric_label(self, unit: str) -> str:
        """Return the label of the loss in a picture."""
        return "cross-entropy (nats)"

    def scaling(self, targets: np.ndarray) -> tuple[float, float]:
        """Start from the log-odds of the classes."""
        return float(np.log(targets.mean() / (1 - targets.mean()))), 1.0

    def default_loss(self) -> Loss:
        """Make the loss."""
        return CrossEntropy()

    def score(self, target: np.ndarray, prediction: np.ndarray, constant: float) -> dict[str, Any]:
        """Score probabilities.

        Returns:
            Cross-entropy (nats), that of the mean predictor, accuracy and balanced accuracy at a threshold of 1/2 and
            area under the ROC curve (the last two None where there is one class only), and the number of crystals.
        """
        import torch
        from torchmetrics.functional.classification import binary_auroc

        right = (prediction > 0.5) == (target == 1)
        both = 0 < target.mean() < 1
        return {
            "cross_entropy": _cross_entropy(target, prediction),
            "mean_predictor_cross_entropy": _cross_entropy(target, np.full_like(prediction, constant)),
            "accuracy": float(right.mean()),
            "balanced_accuracy": float(np.mean([right[target == one].mean() for one in (0, 1)])) if both else None,
            "roc_auc": float(binary_auroc(torch.from_numpy(prediction), torch.from_numpy(target).long()))
            if both
            else None,
            "crystals": len(target),
        }

    def draw(self, pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], model: PRISM, folder: Path) -> str:
        """Draw how well probabilities tell the classes apart; return how they are called in a picture."""
        from prism_plugin.tasks.plots import plot_classes

        areas = {name: self.score(target, found, 0.5)["roc_auc"] for name, (target, found) in pairs.items()}
        plot_classes(pairs, areas, model.target, folder / "classes.png")
        return f"P({model.target})"


def _cross_entropy(target: np.ndarray, probability: np.ndarray) -> float:
    import torch
    from torch.nn import functional

    return float(functional.binary_cross_entropy(torch.from_numpy(probability), torch.from_numpy(target)))
