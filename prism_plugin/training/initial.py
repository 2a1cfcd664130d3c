"""Whether a training that began with a model of the same property was worth it."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data import DataLoader

from prism_plugin.evaluation import evaluation
from prism_plugin.model import PRISM
from prism_plugin.tasks.task import Loss

__all__ = ["CORRECTED", "MIDWAY", "TRAINED", "UNTOUCHED", "consistency", "midway", "validation_losses", "which_to_keep"]

UNTOUCHED = "untouched"
CORRECTED = "corrected"
MIDWAY = "midway"
TRAINED = "trained"


def midway(corrected: PRISM, trained: PRISM) -> PRISM:
    """Make the model whose weights are the means of those before and after a training.

    It answers better than either on crystals like those of the training and on others (Wortsman et al., CVPR 2022,
    doi 10.1109/CVPR52688.2022.00780): what few crystals teach stays, half of their noise goes.
    """
    model = copy.deepcopy(trained)
    before = corrected.state_dict()
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if weight.is_floating_point():
                weight.lerp_(before[name].to(weight), 0.5)
    return model


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


def consistency(gains: np.ndarray) -> float:
    """Say how surely differences lie above 0, in standard deviations of what chance gives.

    The signed-rank statistic (Wilcoxon, Biometrics Bulletin 1, 80, 1945) in its normal form: 0 in the mean if gains and
    losses are alike. It asks how many crystals gain and how these rank, not how much a few gain: one frame can have
    more than half of the loss of a potential.

    Args:
        gains: shape ``(crystals,)``.

    Example:
        >>> round(consistency(np.array([0.1, 0.2, 0.1, 50.0])), 2), round(consistency(np.array([-1.0, -2.0, 4.0])), 2)
        (1.84, 0.0)
    """
    from scipy.stats import rankdata

    moved = gains[gains != 0]
    if not len(moved):
        return 0.0
    ranks = rankdata(np.abs(moved))
    return float((ranks * np.sign(moved)).sum() / np.sqrt((ranks**2).sum()))


def which_to_keep(losses: Mapping[str, np.ndarray]) -> str:
    """Choose among the models by their losses on the validation part.

    The corrected one takes the place of the untouched one if its mean loss is lower: how much it corrects was chosen by
    leaving out training crystals. The midway one must have a lower mean loss than that, and surely so by more than one
    standard deviation (:func:`consistency`; after the rule of one standard error of Breiman et al., Classification and
    Regression Trees, 1984): of few crystals a lower mean is often chance. The trained one, whose best epoch these
    crystals have chosen, by two.

    Args:
        losses: of the same crystals by each model, shape ``(crystals,)``.

    Returns:
        The name of the model; its mean loss is not above that of the untouched one.
    """
    chosen = CORRECTED if losses[CORRECTED].mean() < losses[UNTOUCHED].mean() else UNTOUCHED
    for name, least in ((MIDWAY, 1), (TRAINED, 2)):
        gains = losses[chosen] - losses[name]
        if gains.mean() > 0 and consistency(gains) > least:
            chosen = name
    return chosen
