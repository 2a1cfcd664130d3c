"""Optimizers by name: one plain table. A row turns parameters and settings into an optimizer and its scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from schedulefree import AdamWScheduleFree
from torch.nn import Parameter
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

__all__ = ["OPTIMIZERS", "make_optimizer"]

_Made = tuple[Optimizer, LRScheduler | None]


def _adamw_schedulefree(
    parameters: list[Parameter], lr: float, betas: tuple[float, float], weight_decay: float, steps: int
) -> _Made:
    """AdamW-ScheduleFree (Defazio et al., NeurIPS 2024); warm-up over 5 % of the steps, at most 500."""
    warmup = min(500, steps // 20)
    return AdamWScheduleFree(parameters, lr=lr, betas=betas, weight_decay=weight_decay, warmup_steps=warmup), None


def _adam_onecycle(
    parameters: list[Parameter], lr: float, betas: tuple[float, float], weight_decay: float, steps: int
) -> _Made:
    """Adam with a OneCycle schedule stepped per update, pct_start 0.01 (PRISM supplement, Training Details)."""
    optimizer = Adam(parameters, lr=lr, betas=betas, weight_decay=weight_decay)
    steps = max(steps, 4)
    # OneCycleLR divides by (pct_start * steps - 1): the rise takes two steps at least.
    rise = max(0.01, 2 / steps)
    return optimizer, OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=rise, cycle_momentum=False)


OPTIMIZERS: dict[str, Callable[..., _Made]] = {
    "adam-onecycle": _adam_onecycle,
    "adamw-schedulefree": _adamw_schedulefree,
}


def make_optimizer(
    name: str,
    parameters: Iterable[Parameter],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    steps: int = 1,
) -> tuple[torch.optim.Optimizer, LRScheduler | None]:
    """Make an optimizer of the table.

    Args:
        name: a key of :data:`OPTIMIZERS`.
        parameters: what it moves.
        lr: learning rate (the largest one of a schedule).
        betas: momentum coefficients.
        weight_decay: decay of the weights.
        steps: number of updates of the whole training.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}; choose one of: {', '.join(sorted(OPTIMIZERS))}")
    return OPTIMIZERS[name](list(parameters), lr=lr, betas=betas, weight_decay=weight_decay, steps=steps)
