"""PRISM for crystals: a matgl-compatible graph network, its trainers and an ASE calculator."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prism_plugin.imports import one_number_of_threads, uncollected

if TYPE_CHECKING:
    from prism_plugin.calculators import PRISMCalculator
    from prism_plugin.errors import PrismError
    from prism_plugin.graph.build import build_graph
    from prism_plugin.graph.crystals import CrystalBatch, CrystalGraph, batch_graphs
    from prism_plugin.model import PRISM
    from prism_plugin.optim import ELRA, RodFlow, eos_threshold
    from prism_plugin.potential import PRISMPotential
    from prism_plugin.preset import presets
    from prism_plugin.pretrained import COMMITTEE, available_models, load
    from prism_plugin.settings import TrainingSettings
    from prism_plugin.simulation.relaxation import relax
    from prism_plugin.training.fit import train

__version__ = "0.2.0.dev0"

one_number_of_threads()

_HOMES = {
    "COMMITTEE": "pretrained",
    "ELRA": "optim",
    "PRISM": "model",
    "CrystalBatch": "graph.crystals",
    "CrystalGraph": "graph.crystals",
    "PRISMCalculator": "calculators",
    "PRISMPotential": "potential",
    "PrismError": "errors",
    "RodFlow": "optim",
    "TrainingSettings": "settings",
    "available_models": "pretrained",
    "batch_graphs": "graph.crystals",
    "build_graph": "graph.build",
    "eos_threshold": "optim",
    "load": "pretrained",
    "presets": "preset",
    "relax": "simulation.relaxation",
    "train": "training.fit",
}
__all__ = [
    "COMMITTEE",
    "ELRA",
    "PRISM",
    "CrystalBatch",
    "CrystalGraph",
    "PRISMCalculator",
    "PRISMPotential",
    "PrismError",
    "RodFlow",
    "TrainingSettings",
    "available_models",
    "batch_graphs",
    "build_graph",
    "eos_threshold",
    "load",
    "presets",
    "relax",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that importing the package does no work."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with uncollected():
        home = import_module(f"{__name__}.{_HOMES[name]}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
