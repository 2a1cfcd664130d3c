"""Calculators: PRISM behind the interfaces of simulation packages."""

from __future__ import annotations

from prism_plugin.calculators.ase import PRISMCalculator

__all__ = ["PRISMCalculator"]
