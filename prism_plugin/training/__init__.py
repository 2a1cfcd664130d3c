"""Training: Lightning module, ELRA's callback, BatchNorm re-estimation, runs, plots."""

from __future__ import annotations

from prism_plugin.training.batchnorm import reestimate_batchnorm
from prism_plugin.training.elra import ELRACallback
from prism_plugin.training.module import PropertyTraining
from prism_plugin.training.run import TrainingSettings, train

__all__ = ["ELRACallback", "PropertyTraining", "TrainingSettings", "reestimate_batchnorm", "train"]
