"""PRISM for crystals: a matgl-compatible graph network, its trainers and an ASE calculator."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prism_plugin.calculators import PRISMCalculator
    from prism_plugin.graph.build import build_graph
    from prism_plugin.graph.crystals import CrystalBatch, CrystalGraph, batch_graphs
    from prism_plugin.model import PRISM
    from prism_plugin.potential import PRISMPotential
    from prism_plugin.preset import presets
    from prism_plugin.pretrained import COMMITTEE, load

__version__ = "0.1.0"

_HOMES = {
    "COMMITTEE": "pretrained",
    "PRISM": "model",
    "CrystalBatch": "graph.crystals",
    "CrystalGraph": "graph.crystals",
    "PRISMCalculator": "calculators",
    "PRISMPotential": "potential",
    "batch_graphs": "graph.crystals",
    "build_graph": "graph.build",
    "load": "pretrained",
    "presets": "preset",
}
__all__ = [
    "COMMITTEE",
    "PRISM",
    "CrystalBatch",
    "CrystalGraph",
    "PRISMCalculator",
    "PRISMPotential",
    "batch_graphs",
    "build_graph",
    "load",
    "presets",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package does no work."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
