"""Checks of the options of optimizers, in words that a user reads."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

__all__ = ["check_flag", "check_number"]


def check_flag(name: str, value: Any) -> None:
    """Raise ValueError unless it is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


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
        ValueError: betas must be a number at least 0 and below 1, got 1.0
    """
    if isinstance(value, Real) and math.isfinite(value):
        number = float(value)
        if low < number < high or (includes_low and number == low) or (includes_high and number == high):
            return
    bounds = f"{'at least' if includes_low else 'above'} {low:g}"
    if math.isfinite(high):
        bounds += f" and {'at most' if includes_high else 'below'} {high:g}"
    raise ValueError(f"{name} must be a number {bounds}, got {value!r}")
