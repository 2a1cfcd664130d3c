"""Training: Lightning module, callbacks of ELRA and the edge of stability, BatchNorm re-estimation, runs, plots."""

from __future__ import annotations

from prism_plugin.settings import TrainingSettings
from prism_plugin.training.batchnorm import reestimate_batchnorm
from prism_plugin.training.edge_of_stability import EoSMonitor
from prism_plugin.training.elra_callback import ELRACallback
from prism_plugin.training.fit import train
from prism_plugin.training.module import PropertyTraining
from prism_plugin.training.report import evaluate

__all__ = [
    "ELRACallback",
    "EoSMonitor",
    "PropertyTraining",
    "TrainingSettings",
    "evaluate",
    "reestimate_batchnorm",
    "train",
]
