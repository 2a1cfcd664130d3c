"""Optimizers: ELRA, rod flow, and the table of all by name."""

from __future__ import annotations

from prism_plugin.optim.elra.batch_size import BatchSizeControl
from prism_plugin.optim.elra.optimizer import ELRA
from prism_plugin.optim.registry import OPTIMIZERS, make_optimizer
from prism_plugin.optim.rod_flow.conventions import eos_threshold
from prism_plugin.optim.rod_flow.discrete import Discrete
from prism_plugin.optim.rod_flow.optimizer import RodFlow
from prism_plugin.optim.rod_flow.shadow import RodShadow

__all__ = [
    "ELRA",
    "OPTIMIZERS",
    "BatchSizeControl",
    "Discrete",
    "RodFlow",
    "RodShadow",
    "eos_threshold",
    "make_optimizer",
]
