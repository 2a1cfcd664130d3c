"""ELRA: the step length from two gradients (``optimizer`` decides, ``vectors`` computes)."""

from __future__ import annotations

from prism_plugin.optim.elra.optimizer import ELRA

__all__ = ["ELRA"]
