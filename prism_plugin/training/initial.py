"""Whether a training that began with a model of the same property was worth it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data import DataLoader

from prism_plugin.evaluation import evaluation
from prism_plugin.model import PRISM
from prism_plugin.tasks.task import Loss

__all__ = ["UNTOUCHED", "simplest", "validation_losses"]

UNTOUCHED = "untouched"


def validation_losses(
    models: Mapping[str, PRISM], loss: Loss, loader: DataLoader, differentiates: bool
) -> dict[str, np.ndarray]:
    """Compute the losses of several models on the crystals of the validation part.

    Args:
        models: by name; on one device.
        loss: of each crystal.
        loader: of the validation part.
        differentiates: whether the loss has gradients of predictions in it.

    Returns:
        Of each model, shape ``(crystals,)``.
    """
    found = {}
    for name, model in models.items():
        losses = []
        with evaluation(model), torch.set_grad_enabled(differentiates):
            for batch in loader:
                crystals, targets = move_data_to_device(batch, model.device)
                losses.append(loss(model, crystals, targets, False).detach().double().cpu().numpy())
        found[name] = np.concatenate(losses)
    return found


def simplest(losses: Mapping[str, np.ndarray]) -> str:
    """Choose the simplest model whose losses are not significantly worse than those of a less simple one.

    A model takes the place of a simpler one if its losses are lower by more than one standard error of the differences
    (as Breiman et al., Classification and Regression Trees, 1984, choose among trees): of few crystals the lowest mean
    is often chance.

    Args:
        losses: of the same crystals by each model, shape ``(crystals,)``, the simplest model first.

    Returns:
        The name of the model.
    """
    first, *others = losses
    chosen = first
    for name in others:
        gains = losses[chosen] - losses[name]
        if len(gains) > 1 and gains.mean() > gains.std(ddof=1) / len(gains) ** 0.5:
            chosen = name
    return chosen
