"""Training: Lightning module, callbacks of ELRA and of the edge of stability, BatchNorm re-estimation, runs, plots."""

from __future__ import annotations

from prism_plugin.training.batchnorm import reestimate_batchnorm
from prism_plugin.training.edge import EoSMonitor
from prism_plugin.training.elra import ELRACallback
from prism_plugin.training.module import PropertyTraining
from prism_plugin.training.report import evaluate
from prism_plugin.training.run import TrainingSettings, train

__all__ = [
    "ELRACallback",
    "EoSMonitor",
    "PropertyTraining",
    "TrainingSettings",
    "evaluate",
    "reestimate_batchnorm",
    "train",
]
