"""Optimizers that average (ScheduleFree, ELRA): which of their two sets of weights is where.

They have ``train()``, which puts the moving weights into the model, and ``eval()``, which puts the average there; the
``train_mode`` of their groups says which of them it is.
"""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor

__all__ = ["save_average", "switch_mode"]


def switch_mode(trainer: L.Trainer, mode: str) -> None:
    """Call ``train()`` or ``eval()`` of the optimizers that have it."""
    for optimizer in trainer.optimizers:
        if hasattr(optimizer, mode):
            getattr(optimizer, mode)()


def save_average(trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
    """Put the average into a checkpoint that is written inside an epoch: go there, copy, come back."""
    if not any(group.get("train_mode") for optimizer in trainer.optimizers for group in optimizer.param_groups):
        return
    switch_mode(trainer, "eval")
    checkpoint["state_dict"] = _cloned(module.state_dict())
    if "optimizer_states" in checkpoint:
        checkpoint["optimizer_states"] = [_cloned(optimizer.state_dict()) for optimizer in trainer.optimizers]
    switch_mode(trainer, "train")


def _cloned(state: Any) -> Any:
    """Copy nested dicts and lists with their tensors."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _cloned(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_cloned(value) for value in state)
    return state
