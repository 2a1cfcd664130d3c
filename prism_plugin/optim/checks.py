"""Checks of what users hand to optimizers: options, losses, saved states, in words that they read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import Tensor

from prism_plugin.errors import PrismError

__all__ = ["check_flag", "check_number", "check_state", "read_loss"]


def check_flag(name: str, value: Any) -> None:
    """Raise ValueError unless it is True or False."""
    if not isinstance(value, bool):
        raise PrismError(f"{name} must be True or False, got {value!r}")


def check_number(
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    includes_low: bool = False,
    includes_high: bool = True,
) -> None:
    """Raise ValueError unless it is a finite number between the bounds; each says whether it belongs to them.

    Example:
        >>> check_number("betas", 1.0, 0.0, 1.0, includes_low=True, includes_high=False)
        Traceback (most recent call last):
        prism_plugin.errors.PrismError: betas must be a number at least 0 and below 1, got 1.0
    """
    if isinstance(value, Real) and math.isfinite(value):
        number = float(value)
        if low < number < high or (includes_low and number == low) or (includes_high and number == high):
            return
    bounds = f"{'at least' if includes_low else 'above'} {low:g}"
    if math.isfinite(high):
        bounds += f" and {'at most' if includes_high else 'below'} {high:g}"
    raise PrismError(f"{name} must be a number {bounds}, got {value!r}")


def check_state(owner: str, group: Mapping[str, Any], state_dict: Mapping[str, Any]) -> None:
    """Raise ValueError if a saved state lacks what the first parameter group of its owner has."""
    groups = state_dict.get("param_groups") or [{}]
    missing = group.keys() - groups[0].keys() - {"params"}
    if missing:
        raise PrismError(
            f"this is not the state of {owner} of this version: start without it (it lacks "
            f"{', '.join(sorted(missing)[:3])}, {len(missing)} entries in all)"
        )


def read_loss(loss: Any, missing: str) -> float:
    """Return a loss as a number; raise ValueError, with the text ``missing`` where it is None, if it is none."""
    if loss is None:
        raise PrismError(missing)
    if isinstance(loss, Tensor) and loss.numel() == 1 and not loss.is_complex():
        return float(loss.detach())
    if not isinstance(loss, Real):
        given = f"shape {tuple(loss.shape)} of {loss.dtype}" if isinstance(loss, Tensor) else repr(loss)
        raise PrismError(f"the loss must be one real number, got {given}")
    return float(loss)
