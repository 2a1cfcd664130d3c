"""Whether a training that began with a model of the same property was worth it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data import DataLoader

from prism_plugin.evaluation import evaluation
from prism_plugin.model import PRISM
from prism_plugin.tasks.task import Loss

__all__ = ["UNTOUCHED", "validation_losses"]

UNTOUCHED = "untouched"


def validation_losses(
    models: Mapping[str, PRISM], loss: Loss, loader: DataLoader, differentiates: bool
) -> dict[str, float]:
    """Compute the mean loss of several models over the validation part.

    Args:
        models: by name; on one device.
        loss: of each crystal.
        loader: of the validation part.
        differentiates: whether the loss has gradients of predictions in it.
    """
    found = {}
    for name, model in models.items():
        total, count = 0.0, 0
        with evaluation(model), torch.set_grad_enabled(differentiates):
            for batch in loader:
                crystals, targets = move_data_to_device(batch, model.device)
                total += float(loss(model, crystals, targets, False).detach().double().sum())
                count += len(crystals)
        found[name] = total / count
    return found
