"""Optimizers that average (ScheduleFree, ELRA): which of their two sets of weights is where.

They have ``train()``, which puts the moving weights into the model, and ``eval()``, which puts the average there; the
``train_mode`` of their groups says which of them it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

__all__ = ["MOVING", "put_weights", "save_average", "switch_mode"]


def switch_mode(trainer: L.Trainer, mode: str) -> None:
    """Call ``train()`` or ``eval()`` of the optimizers that have it."""
    for optimizer in trainer.optimizers:
        if hasattr(optimizer, mode):
            getattr(optimizer, mode)()


MOVING = "moving_weights"


def save_average(trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Put the average into a checkpoint that is written inside an epoch: go there, copy, come back to the same bits.

    The moving weights lie beside it: computed from the average they would differ in the last digit.
    """
    if not any(group.get("train_mode") for optimizer in trainer.optimizers for group in optimizer.param_groups):
        return
    moving = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    switch_mode(trainer, "eval")
    checkpoint["state_dict"] = _cloned(module.state_dict())
    if "optimizer_states" in checkpoint:
        checkpoint["optimizer_states"] = [_cloned(optimizer.state_dict()) for optimizer in trainer.optimizers]
    checkpoint[MOVING] = moving
    switch_mode(trainer, "train")
    put_weights(module, moving)


@torch.no_grad()
def put_weights(module: L.LightningModule, weights: Mapping[str, Tensor]) -> None:
    """Set the weights of a module by their names."""
    for name, weight in module.named_parameters():
        weight.copy_(weights[name])


def _cloned(state: Any) -> Any:
    """Copy nested dicts and lists with their tensors."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _cloned(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_cloned(value) for value in state)
    return state
